"""The rows of a batch, and what becomes of them: each is a candidate text, of which a request may
have several.

Shape letters: B rows, L tokens, N latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.config import CALL, knobs, row_params
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.rerank import most_like_the_others
from ldlm_jax.sampling.spec import ConditioningBatch, Generated, Spec
from ldlm_jax.sampling.template import Template, TokenRow

# Lengths that are tried for a span of open length, in tokens, as far as there is room.
LENGTHS = (1, 2, 3, 4, 6, 8, 11, 15)


@dataclass(frozen=True)
class Draft:
    """What a step would have decoded to.

    Attributes:
      text: with what was given.
      tokens: token ids.
      confidence: probability of each at that step; 1 where it was given.
    """

    text: str
    tokens: list[int]
    confidence: list[float]


@dataclass(frozen=True)
class Sample:
    """One generated text.

    Attributes:
      prompt: given beginning.
      text: all of it, given text as it was to the last byte.
      tokens: token ids, up to and with the end token if there is one.
      given: whether each was given.
      evaluations: of the denoiser, for all blocks together (prefill and decoding not counted).
      drafts: one a step, if they were asked for; the last is the finished text.
      cut: whether the text would go on, had the window not ended.
    """

    prompt: str
    text: str
    tokens: list[int]
    given: list[bool]
    evaluations: int
    drafts: list[Draft]
    cut: bool = False


class Candidate(NamedTuple):
    """A text to be generated, of which a request may have several to choose from."""

    request: Request
    number: int
    template: Template
    length: int
    row: TokenRow

    @property
    def key(self) -> jax.Array:
        """Of all its randomness."""
        key = jax.random.fold_in(jax.random.key(self.request.seed), self.request.number)
        return jax.random.fold_in(key, self.number) if self.number else key


def row_count(request: Request, template: Template) -> int:
    """Rows that a request takes: the texts of which one is kept."""
    return max(request.config.best_of, len(LENGTHS) * bool(template.open_spans))


def candidates_of(generator: Generator, request: Request, template: Template) -> list[Candidate]:
    """The rows of one request."""
    config, open_spans = request.config, template.open_spans
    window, count = generator.row_length(config), row_count(request, template)
    room = (window - template.fixed_tokens - 1) // max(1, len(open_spans))
    possible = [length for length in LENGTHS if length <= room]
    candidates = []
    for number in range(count):
        rng = np.random.default_rng((request.seed, request.number, number))
        # The lengths in turn, and with several spans in all combinations by chance.
        lengths = {
            span: possible[number % len(possible)] if not i else int(rng.choice(possible))
            for i, span in enumerate(open_spans)
        }
        own = template.with_lengths(lengths)
        length = window
        if own.continues and not generator.diffusion.block_size:
            # A text generated block by block ends where its end token falls; others end here.
            length = int(draw_lengths(generator.lengths, own.fixed_tokens, 1, rng)[0])
        row = own.to_row(
            window, length, generator.block_tokens, generator.networks.vae.tokens_per_latent
        )
        candidates.append(Candidate(request, number, own, length, row))
    return candidates


def draw_lengths(
    histogram: Sequence[int], minimum: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Lengths in tokens, end token included, as training documents have them.

    Args:
      histogram: training documents by length, from 0 to the window.
      minimum: the prompt's length; drawn lengths are larger.
      count: how many.
      rng: random generator.
    """
    weights = np.asarray(histogram, np.float64).copy()
    weights[: minimum + 1] = 0
    if not weights.any():  # no training text was ever that long
        return np.full(count, len(weights) - 1)
    return rng.choice(len(weights), size=count, p=weights / weights.sum())


def batch_of(
    candidates: Sequence[Candidate], tokens_per_latent: int
) -> tuple[ConditioningBatch, dict[str, jax.Array]]:
    """What is given of each, and its random key and options: arrays with a row for each."""
    rows = zip(*(c.row for c in candidates), strict=True)
    tokens, segments, observed, no_end = map(np.stack, rows)
    given = ConditioningBatch(tokens, segments, observed[:, ::tokens_per_latent], no_end)
    return given, row_params([c.key for c in candidates], [c.request.config for c in candidates])


def spec_of(generator: Generator, asked: Sequence[tuple[Request, Template]]) -> Spec:
    """What all requests have in common."""
    configs = [request.config for request, _ in asked]
    for name in knobs(CALL):
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise UserError(f"requests generated together must agree on {name}, not {values}.")
    spec = Spec.of(generator.networks, generator.diffusion, configs, generator.window)
    if not any(r.config.guidance != 1.0 and template.fixed_tokens for r, template in asked):
        spec = spec.without("guidance")
    if generator.diffusion.self_condition == 0:
        spec = spec.without("self_condition_guidance")
    scored = any(
        request.config.rerank == "likelihood"
        and (request.config.best_of > 1 or template.open_spans)
        for request, template in asked
    )
    return replace(spec, scored=scored)


class Finished(NamedTuple):
    """A generated candidate, and its log-likelihood a token."""

    sample: Sample
    likelihood: float


def finish(tokenizer: Tokenizer, candidate: Candidate, row: Generated) -> Finished:
    """The text of one row."""
    request, template = candidate.request, candidate.template
    ids, text = template.from_row(row.tokens_BxL, candidate.length, tokenizer)
    drafts = []
    if row.trace:
        steps = [*row.trace.tokens_BxKxL[: request.config.steps - 1], row.tokens_BxL]
        for tokens_L, confidence_L in zip(steps, row.trace.confidence_BxKxL, strict=False):
            draft, words = template.from_row(tokens_L, candidate.length, tokenizer)
            confidence_L = np.where(candidate.row.observed_L, 1.0, confidence_L)
            confidence = [round(float(x), 3) for x in confidence_L[: len(draft)]]
            drafts.append(Draft(words, draft, confidence))
    given = candidate.row.observed_L[: len(ids)].tolist()
    full = len(ids) == len(row.tokens_BxL)
    cut = template.continues and full and ids[-1] not in (EOS, PAD)
    sample = Sample(request.prompt, text, ids, given, int(row.evaluations_B), drafts, cut)
    return Finished(sample, float(row.likelihood_B))


def rerank(how: str, finished: Sequence[Finished]) -> Sample:
    """One of the candidates, with the evaluations that all of them took."""
    best = 0
    if len(finished) > 1 and how == "mbr":
        best = most_like_the_others([f.sample.text for f in finished])
    elif len(finished) > 1:
        best = int(np.argmax([f.likelihood for f in finished]))
    evaluations = sum(f.sample.evaluations for f in finished)
    return replace(finished[best].sample, evaluations=evaluations)
