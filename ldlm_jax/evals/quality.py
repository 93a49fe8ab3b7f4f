"""How good written text is: a frozen judge, MAUVE, variety, repetition and copying side by side.

No measure stands alone: perplexity falls with repetition and with dull text, variety rises with
word salad. Each set of texts gets all of them, and so does real text, in its order and shuffled.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from ldlm_jax.data.build import read_texts
from ldlm_jax.errors import UserError
from ldlm_jax.evals import measures
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.evals.judge import Judge, Reading
from ldlm_jax.generate import answer, generate
from ldlm_jax.request import Request

MAUVE_BUCKETS = 50
MAUVE_SEEDS = (0, 1, 2)
# With fewer texts than this k-means has too little in a bucket for the number to mean anything.
MAUVE_LEAST = 250
# Shares of a held-out text, in words, that are given as prompts.
PROMPTS = (0.25, 0.5)


def judged(readings: Sequence[Reading]) -> dict[str, float]:
    """Perplexity under the judge, and what must be read beside it.

    Returns:
      ``perplexity`` a token; ``perplexity_without_repeats``: over tokens that do not end a 4-gram
      which the text held before; ``token_entropy``: of all texts' tokens together, in nats;
      ``tokens``: mean length. Without a single token nothing.
    """
    if not any(len(reading.ids) for reading in readings):
        return {}
    nll = np.concatenate([reading.nll for reading in readings])
    fresh = ~np.concatenate([measures.seen_before(reading.ids) for reading in readings])
    return {
        "perplexity": float(np.exp(nll.mean())),
        "perplexity_without_repeats": float(np.exp(nll[fresh].mean())),
        "token_entropy": measures.entropy(reading.ids for reading in readings),
        "tokens": len(nll) / len(readings),
    }


def mauve(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """MAUVE (Pillutla et al. 2021), mean and deviation over seeds; nothing for small sets."""
    count = min(len(features), len(reference))
    if count < MAUVE_LEAST:
        return {}
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError(
            "MAUVE needs mauve-text and sacrebleu: pip install 'ldlm_jax[eval]'."
        ) from error
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
def _judge(name: str) -> Judge:
    return Judge.load(name)


@cache
def _memory(folder) -> measures.Memory:
    return measures.Memory(read_texts(folder, "train"))


class Examiner:
    """Real texts, and everything that sets of texts are measured against.

    Attributes:
      held_out: of the split that is evaluated; MAUVE and lengths are compared with these.
      other: of the other held-out split, written by nobody that the model knows either.
      trained_on: of the training split, as a perfect model of it would write.
    """

    def __init__(self, context: EvalContext):
        if context.num_samples < 2:
            raise UserError("the evaluation quality compares texts: ask for at least 2 samples.")
        self._judge = _judge(context.judge)
        self._memory = _memory(context.prepared.text)
        other = "test" if context.split == "validation" else "validation"
        self.held_out = self._read(context, context.split)
        self.other = self._read(context, other)
        self.trained_on = self._read(context, "train")
        self._reference = self._judge.read(self.held_out)
        self._features = np.stack([reading.features for reading in self._reference])

    @staticmethod
    def _read(context: EvalContext, split: str) -> list[str]:
        """Documents of a split, drawn evenly from all of it and short enough for the window."""
        texts = list(read_texts(context.prepared.text, split))
        ids = context.writer.tokenizer.encode(texts)
        texts = [t for t, i in zip(texts, ids, strict=True) if len(i) < context.writer.window]
        if len(texts) < 2:
            raise UserError(f"the {split} split has no two texts that fit the model's window.")
        count = min(context.num_samples, len(texts))
        return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]

    def measure(self, texts: Sequence[str], reference: bool = True) -> dict[str, float]:
        """All measures of a set of texts; without the comparison with held-out text if asked."""
        readings = self._judge.read(texts)
        results = judged(readings) | measures.text_statistics(texts)
        if len(texts) > 1 and any(text.strip() for text in texts):
            results["self_bleu"] = measures.self_bleu(texts)
            results["copied_longest"] = float(np.mean([self._memory.longest(t) for t in texts]))
            share = self._memory.share(texts)
            if share is not None:
                results["copied_8"] = share
        if reference:
            features = np.stack([reading.features for reading in readings])
            results |= mauve(features, self._features)
            results["length_distance"] = measures.length_distance(texts, self.held_out)
        return results


def evaluate(context: EvalContext) -> Results:
    """All measures of unconditional texts and continuations at each number of steps.

    Beside them stand the held-out texts themselves, two ceilings (real texts of the training split
    and of the other held-out split) and a floor (the former with their words shuffled).
    """
    examiner = Examiner(context)
    rows = {
        "held_out": examiner.measure(examiner.held_out, reference=False),
        "other_held_out": examiner.measure(examiner.other),
        "trained_on": examiner.measure(examiner.trained_on),
        "shuffled": examiner.measure(shuffled(examiner.trained_on)),
    }
    for steps in context.step_counts:
        config = replace(context.sample, steps=steps)
        samples = generate(context.writer, config, context.seed, num_samples=context.num_samples)
        rows[f"unconditional_steps_{steps}"] = examiner.measure([s.text for s in samples])
        for share in PROMPTS:
            requests = [
                Request(_beginning(text, share), context.seed, number, config)
                for number, text in enumerate(examiner.held_out)
            ]
            written = [s.text for s in answer(context.writer, requests)]
            rows[f"continuation_{share:g}_steps_{steps}"] = examiner.measure(written)
    return {
        f"quality/{row}/{name}": value
        for row, values in rows.items()
        for name, value in values.items()
    }


def _beginning(text: str, share: float) -> str:
    words = text.split()
    return " ".join(words[: max(1, round(share * len(words)))])
