"""How good written text is: a frozen scorer, MAUVE, variety, repetition and copying side by side.

No measure stands alone: perplexity falls with repetition and with dull text, variety rises with
word salad. Each set of texts gets all of them, and so does real text, in its order and shuffled.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product

import numpy as np

from ldlm_jax.data.dataset import Prepared
from ldlm_jax.data.texts import read_texts
from ldlm_jax.errors import UserError
from ldlm_jax.evals import text_metrics
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.evals.scorer import Score, Scorer
from ldlm_jax.sampling.generate import generate, generate_requests
from ldlm_jax.sampling.request import Request

MAUVE_BUCKETS = 50
MAUVE_SEEDS = (0, 1, 2)
# With fewer texts than this k-means has too little in a bucket for the number to mean anything.
MAUVE_LEAST = 250
# Texts of a set that are shown.
SHOWN = 8
# Shares of a held-out text, in words, that are given as prompts.
PROMPTS = (0.25, 0.5)


def scored(scores: Sequence[Score]) -> dict[str, float]:
    """Perplexity under the scorer, and what must be read beside it.

    Returns:
      ``perplexity`` a token; ``perplexity_without_repeats``: over tokens that do not end a 4-gram
      which the text held before; ``token_entropy``: of all texts' tokens together, in nats;
      ``tokens``: mean length. Without a single token nothing.
    """
    if not any(len(score.ids) for score in scores):
        return {}
    nll = np.concatenate([score.nll for score in scores])
    fresh = ~np.concatenate([text_metrics.seen_before(score.ids) for score in scores])
    return {
        "perplexity": float(np.exp(nll.mean())),
        "perplexity_without_repeats": float(np.exp(nll[fresh].mean())),
        "token_entropy": text_metrics.entropy(score.ids for score in scores),
        "tokens": len(nll) / len(scores),
    }


def mauve(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """MAUVE (Pillutla et al. 2021), mean and deviation over seeds; nothing for small sets."""
    count = min(len(features), len(reference))
    if count < MAUVE_LEAST:
        return {}
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError("MAUVE needs mauve-text and sacrebleu: pip install '.[eval]'.") from error
    scores = [
        compute_mauve(
            p_features=features[:count], q_features=reference[:count], num_buckets=MAUVE_BUCKETS,
            seed=seed, verbose=False,
        ).mauve
        for seed in MAUVE_SEEDS
    ]  # fmt: skip
    return {"mauve": float(np.mean(scores)), "mauve_deviation": float(np.std(scores))}


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The same words in random order, text by text."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.permutation(text.split())) for text in texts]


@cache
def _scorer(name: str) -> Scorer:
    return Scorer.load(name)


@cache
def _train_text(folder) -> text_metrics.TrainingText:
    return text_metrics.TrainingText(read_texts(folder, "train"))


class QualityEvaluator:
    """Real texts, and everything that sets of texts are measured against.

    Attributes:
      held_out: of the split that is evaluated; MAUVE and lengths are compared with these.
      other: of the other held-out split, written by nobody that the model knows either.
      trained_on: of the training split, as a perfect model of it would write.
    """

    def __init__(self, prepared: Prepared, scorer: str, split: str, window: int, count: int):
        """Read the real texts.

        Args:
          prepared: the corpus.
          scorer: name or path of the model that reads.
          split: held-out split to compare with.
          window: longest text in the corpus's tokens.
          count: texts of each kind, fewer where a split is smaller.

        Raises:
          UserError: fewer than two texts, or the scorer is not installed.
        """
        if count < 2:
            raise UserError("the evaluation quality compares texts: ask for at least 2 samples.")
        self._prepared, self._window, self._count = prepared, window, count
        self._scorer = _scorer(scorer)
        self._train_text = _train_text(prepared.text)
        self.held_out = self._choose(split)
        self.other = self._choose("test" if split == "validation" else "validation")
        self.trained_on = self._choose("train")
        self._kept = prepared.text.with_name("scores")
        reference = self._scorer.score_once(self.held_out, self._kept)
        self._features = np.stack([score.features for score in reference])

    def _choose(self, split: str) -> list[str]:
        """Documents of a split, drawn evenly from all of it, which fit the window."""
        texts = list(read_texts(self._prepared.text, split))
        ids = self._prepared.tokenizer.encode(texts)
        texts = [t for t, i in zip(texts, ids, strict=True) if len(i) < self._window]
        if len(texts) < 2:
            raise UserError(f"the {split} split has no two texts that fit the model's window.")
        count = min(self._count, len(texts))
        return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]

    def real_text(self) -> dict[str, dict[str, float | str]]:
        """Measures of real texts: what is compared with, two ceilings and a floor."""
        return {
            "held_out": self.measure(self.held_out, reference=False, real=True),
            "other_held_out": self.measure(self.other, real=True),
            "trained_on": self.measure(self.trained_on, real=True),
            "shuffled": self.measure(shuffled(self.trained_on), real=True),
        }

    def measure(
        self, texts: Sequence[str], reference: bool = True, real: bool = False
    ) -> dict[str, float | str]:
        """All measures of a set of texts, and a few of them to read.

        Args:
          texts: the set.
          reference: compare it with held-out text.
          real: it is of the corpus, so that what the scorer makes of it is kept there.
        """
        read = partial(self._scorer.score_once, folder=self._kept) if real else self._scorer.read
        scores = read(texts)
        results = scored(scores) | text_metrics.text_statistics(texts)
        if len(texts) > 1 and any(text.strip() for text in texts):
            results["self_bleu"] = text_metrics.self_bleu(texts)
            results["copied_longest"] = float(np.mean([self._train_text.longest(t) for t in texts]))
            share = self._train_text.share(texts)
            if share is not None:
                results["copied_8"] = share
        if reference:
            features = np.stack([score.features for score in scores])
            results |= mauve(features, self._features)
            results["length_distance"] = text_metrics.length_distance(texts, self.held_out)
        return results | {"texts": "\n".join(f"- {text}" for text in texts[:SHOWN])}


def evaluate(context: EvalContext) -> Results:
    """All measures of unconditional texts and continuations at each number of steps.

    Beside them stand the held-out texts themselves, two ceilings (real texts of the training split
    and of the other held-out split) and a floor (the former with their words shuffled).
    Continuations are also written with each of ``guidances``.
    """
    evaluator = QualityEvaluator(
        context.prepared,
        context.scorer,
        context.split,
        context.generator.window,
        context.num_samples,
    )
    rows = evaluator.real_text()

    def add(name: str, texts: Sequence[str]) -> None:
        rows[name] = evaluator.measure(texts)
        context.report(f"quality: {name}: {headline(rows[name])}")

    for steps in context.step_counts:
        config = replace(context.sample, steps=steps)
        samples = generate(context.generator, config, context.seed, num_samples=context.num_samples)
        add(f"unconditional_steps_{steps}", [s.text for s in samples])
        for share, guidance in product(PROMPTS, (config.guidance, *context.guidances)):
            guided = replace(config, guidance=guidance)
            requests = [
                Request(prompt, context.seed, number, guided)
                for number, prompt in enumerate(beginnings(evaluator.held_out, share))
            ]
            written = [s.text for s in generate_requests(context.generator, requests)]
            name = f"_guidance_{guidance:g}" if guidance != config.guidance else ""
            add(f"continuation_{share:g}{name}_steps_{steps}", written)
    return named(rows)


def headline(measured: dict[str, float | str]) -> str:
    """The measures of a set of texts that are read first."""
    first = ("perplexity", "token_entropy", "mauve", "loop_rate")
    return ", ".join(f"{name} {measured[name]:.3f}" for name in first if name in measured)


def named(rows: dict[str, dict[str, float | str]]) -> Results:
    """Rows as flat results, ``quality/<row>/<measure>``."""
    return {
        f"quality/{row}/{name}": value
        for row, values in rows.items()
        for name, value in values.items()
    }


def beginnings(texts: Sequence[str], share: float) -> list[str]:
    """The first words of each text, at least one."""
    words = [text.split() for text in texts]
    return [" ".join(w[: max(1, round(share * len(w)))]) for w in words]
