"""An adapter for lm-evaluation-harness (extra ``harness``).

    from lm_eval import simple_evaluate
    from ldlm_jax.serving.harness import LatentLM

    simple_evaluate(LatentLM("runs/mine"), tasks=["lambada_openai"])

Log-likelihoods are exact for models with blocks and a token posterior. Of all other models they are
the Monte-Carlo bounds of ``sampling.likelihood``: what is likelier for another reason than a looser
bound cannot be told from them, their ``is_greedy`` is always false, and ``standard_errors`` keeps
the error of each.
"""

from collections.abc import Sequence
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ldlm_jax.sampling.likelihood import Likelihood, encoded, token_likelihoods
from ldlm_jax.sampling.request import Request
from ldlm_jax.serving.hub import open_model
from ldlm_jax.serving.model import Model


@register_model("ldlm")
class LatentLM(LM):
    """A model of this project as the harness sees it.

    Attributes:
      model: the model.
      standard_errors: of all log-likelihoods asked for so far; 0 where exact.
    """

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int = 32,
        draws: int = 16,
        seed: int = 0,
        **options,
    ):
        """Load a model.

        Args:
          pretrained: the folder of a run, an exported folder, or a name on the Hub.
          batch_size: texts at once.
          draws: of a bound.
          seed: of all randomness.
          **options: of the sampler, see ``sampling.config.SampleConfig``.
        """
        super().__init__()
        self.model = Model(open_model(pretrained))
        self.standard_errors: list[float] = []
        self._batch_size, self._draws, self._seed = int(batch_size), int(draws), int(seed)
        self._config = self.model.options(batch_size=self._batch_size, **options)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation after its context; the latest part of a long context counts."""
        generator, pairs = self.model.run.generator, []
        for request in requests:
            context, continuation = encoded(generator, *request.args)
            room = self.model.window - 1 - len(continuation)
            pairs.append((context[-room:] if room > 0 else [], continuation))
        return [(one.log_likelihood, _is_greedy(one)) for one in self._score(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts, without their ends: each half window after the half before it."""
        tokenizer, half = self.model.run.tokenizer, (self.model.window - 1) // 2
        pairs, owners = [], []
        for owner, request in enumerate(requests):
            (ids,) = tokenizer.encode([request.args[0]])
            for start in range(0, len(ids), half):
                pairs.append((ids[max(0, start - half) : start], ids[start : start + half]))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, self._score(pairs), strict=True):
            totals[owner] += one.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations up to the first of the strings in ``until``.

        Texts are sampled as the model's options say: there is no greedy way through a latent space,
        so ``do_sample`` and a temperature of 0 change nothing.
        """
        tokenizer, window = self.model.run.tokenizer, self.model.window
        asked, limits = [], []
        for number, request in enumerate(requests):
            context, how = request.args
            limits.append(min(int(how.get("max_gen_toks", window // 2)), window // 2))
            (ids,) = tokenizer.encode([context])
            if len(ids) > (room := window - limits[-1] - 2):
                context = tokenizer.decode(ids[-room:])
            asked.append(Request(context, self._seed, number, self._config))
        texts = []
        for request, most, one, sample in zip(
            requests, limits, asked, self.model.requests(asked), strict=True
        ):
            text = sample.text[len(one.prompt) :]
            (ids,) = tokenizer.encode([text])
            texts.append(_until(tokenizer.decode(ids[:most]), request.args[1].get("until", [])))
        return texts

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        with self.model.run.use_sharding():
            found = token_likelihoods(
                self.model.run.generator, pairs, draws=self._draws, seed=self._seed,
                batch_size=self._batch_size,
            )  # fmt: skip
        self.standard_errors += [one.standard_error for one in found]
        return found


def _is_greedy(one: Likelihood) -> bool:
    """Whether every token is the likeliest at its place."""
    return one.exact and all(
        max(top, key=top.get) == token for token, top in zip(one.tokens, one.top, strict=True)
    )


def _until(text: str, stops: str | Sequence[str]) -> str:
    stops = [stops] if isinstance(stops, str) else stops
    places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
