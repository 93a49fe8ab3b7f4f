"""From prompts to text: the one path used by the command line, the evaluations and the examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np

from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.sampling.blockwise import write_tokens
from ldlm_jax.sampling.request import SHARED, Request, SampleConfig
from ldlm_jax.sampling.rerank import most_like_the_others
from ldlm_jax.sampling.spec import Dials, Page, Plan, Written
from ldlm_jax.sampling.template import Outline, Row
from ldlm_jax.train_state import LatentStats, Models, TrainState, with_foundation


@dataclass(frozen=True)
class Writer:
    """A trained model, ready to write.

    Attributes:
      models: the networks.
      diffusion: how the denoiser was trained.
      params: parameters, averaged ones for best text.
      latents: statistics of the latent channels.
      tokenizer: of the training run.
      lengths: how many training documents have each length, 0 to the window.
    """

    models: Models
    diffusion: DiffusionConfig
    params: dict
    latents: LatentStats
    tokenizer: Tokenizer
    lengths: Sequence[int]

    @classmethod
    def of(cls, models: Models, diffusion, state: TrainState, tokenizer, lengths, foundation=None):
        """The averaged model of a training state, and the weights of its foundation."""
        params = with_foundation(state.ema, foundation)
        return cls(models, diffusion, params, state.latents, tokenizer, tuple(lengths))

    @property
    def window(self) -> int:
        """Tokens in a row of training."""
        return len(self.lengths) - 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; of a latent where whole texts are written."""
        return max(1, self.diffusion.block_size) * self.models.vae.tokens_per_latent

    def in_blocks(self, size: int) -> "Writer":
        """The same model, writing ``size`` latents at once; 0 for as many as in training."""
        return replace(self, diffusion=self.diffusion.in_blocks(size))

    def row_length(self, config: SampleConfig) -> int:
        """Tokens in a row that is written, whole blocks."""
        return -(-(config.length or self.window) // self.block_tokens) * self.block_tokens


# Lengths that are tried for a hole of open length, in tokens, as far as there is room.
LENGTHS = (1, 2, 3, 4, 6, 8, 11, 15)


@dataclass(frozen=True)
class Draft:
    """What a step would have decoded to.

    Attributes:
      text: with what was given.
      tokens: token ids.
      confidence: probability of each to that step; 1 where it was given.
    """

    text: str
    tokens: list[int]
    confidence: list[float]


@dataclass(frozen=True)
class Sample:
    """One written text.

    Attributes:
      prompt: given beginning.
      text: all of it, given text as it was to the last byte.
      tokens: token ids, up to and with the end token if there is one.
      given: whether each was given.
      evaluations: of the denoiser, for all blocks together (reading and decoding them not counted).
      drafts: one a step, if they were asked for; the last is the finished text.
    """

    prompt: str
    text: str
    tokens: list[int]
    given: list[bool]
    evaluations: int
    drafts: list[Draft]


def generate(
    writer: Writer,
    config: SampleConfig,
    seed: int,
    *,
    num_samples: int = 1,
    prompt: str = "",
    keep_drafts: bool = False,
) -> Iterator[Sample]:
    """Write several texts of one seed; see ``answer``.

    Args:
      writer: the model.
      config: steps, solver, guidance.
      seed: of all randomness; the same seed writes the same texts.
      num_samples: how many.
      prompt: given beginning of every text, or empty.
      keep_drafts: keep what each step would decode to.
    """
    request = Request(prompt, seed, config=config)
    return answer(writer, request.several(num_samples), keep_drafts)


def answer(
    writer: Writer,
    requests: Sequence[Request],
    keep_drafts: bool = False,
    on_block: Callable[[int, np.ndarray], None] | None = None,
) -> Iterator[Sample]:
    """Write the texts that were asked for, in order, batch by batch.

    A batch is one compiled call whatever its requests have of their own; it takes as many steps as
    the one that asked for most. A request that asks for the best of several, or leaves the length
    of a hole open, takes several rows.

    Args:
      writer: the model.
      requests: what to write.
      keep_drafts: keep what each step would decode to.
      on_block: see ``writing.Plan``; the rows are those of the batch.

    Raises:
      UserError: given text does not fit the window, guidance or holes were asked of a model that
        never trained with them, or the requests differ in what must be alike.
    """
    if not requests:
        return
    for request in requests:
        request.config.check_fits(writer.diffusion)
    writer = writer.in_blocks(requests[0].config.block_size)
    outlines = [Outline.of(request.pieces, writer.tokenizer) for request in requests]
    for request, outline in zip(requests, outlines, strict=True):
        _check(writer, request, outline)
    plan = replace(_plan(writer, requests, outlines), traced=keep_drafts, on_block=on_block)
    asked = zip(requests, outlines, strict=True)
    groups = [_candidates(writer, request, outline) for request, outline in asked]
    written = _write(writer, plan, [candidate for group in groups for candidate in group])
    for request, group in zip(requests, groups, strict=True):
        yield _choose(request.config.choose, list(islice(written, len(group))))


def _check(writer: Writer, request: Request, outline: Outline) -> None:
    config, diffusion = request.config, writer.diffusion
    # One more for the end, or for something to write.
    needed, most = outline.known_tokens + len(outline.free) + 1, writer.row_length(config)
    if most > writer.window and (not diffusion.block_size or outline.has_holes):
        raise UserError(
            f"length = {config.length} is beyond the model's window of {writer.window} tokens, "
            "where only a model with diffusion.block_size goes on, and only to continue."
        )
    if needed > most:
        raise UserError(
            f"given text and holes take {needed} tokens, with one for what comes after; the "
            f"text may have {most} (the model's window is {writer.window}). Shorten it."
        )
    if outline.has_holes and not diffusion.fills_holes:
        raise UserError(
            "this model was trained to continue, not to write what known text follows: train with "
            "diffusion.suffix, diffusion.infill or diffusion.spans above 0."
        )
    learned = diffusion.condition_dropout > 0 and (diffusion.prefix > 0 or diffusion.fills_holes)
    if config.guidance != 1.0 and outline.known_tokens and not learned:
        raise UserError(
            "guidance needs a model trained with diffusion.condition_dropout and a share of known "
            "text (diffusion.prefix) above 0; use guidance 1."
        )


def _plan(writer: Writer, requests, outlines) -> Plan:
    """What all requests have in common."""
    configs = [request.config for request in requests]
    for name in SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise UserError(f"requests written together must agree on {name}, not {values}.")
    asked = list(zip(configs, outlines, strict=True))
    return replace(
        Plan.of(writer.models, writer.diffusion, configs[0], writer.window),
        steps=max(config.steps for config in configs),
        guided=any(c.guidance != 1.0 and outline.known_tokens > 0 for c, outline in asked),
        self_guided=writer.diffusion.self_condition > 0
        and any(config.self_guidance != 1.0 for config in configs),
        context_guided=any(config.context_guidance != 1.0 for config in configs),
        truncated=any(config.top_p < 1.0 for config in configs),
        early=any(config.patience > 0 for config in configs),
        scored=any(
            c.choose == "likelihood" and (c.best_of > 1 or outline.free) for c, outline in asked
        ),
    )


class Candidate(NamedTuple):
    """A text to be written, of which a request may have several to choose from."""

    request: Request
    number: int
    outline: Outline
    length: int
    row: Row

    @property
    def key(self) -> jax.Array:
        """Of all its randomness."""
        key = jax.random.fold_in(jax.random.key(self.request.seed), self.request.number)
        return jax.random.fold_in(key, self.number) if self.number else key


class Finished(NamedTuple):
    """A written candidate, and how likely the model finds it (logarithm, a token)."""

    sample: Sample
    likelihood: float


def _candidates(writer: Writer, request: Request, outline: Outline) -> list[Candidate]:
    """The rows of one request."""
    config = request.config
    count = max(config.best_of, len(LENGTHS) if outline.free else 1)
    per_latent = writer.models.vae.tokens_per_latent
    window = writer.row_length(config)
    room = (window - outline.known_tokens - 1) // max(1, len(outline.free))
    possible = [length for length in LENGTHS if length <= room]
    candidates = []
    for number in range(count):
        rng = np.random.default_rng((request.seed, request.number, number))
        # The lengths in turn, and with several holes in all combinations by chance.
        lengths = {
            hole: possible[number % len(possible)] if not i else int(rng.choice(possible))
            for i, hole in enumerate(outline.free)
        }
        own = outline.with_lengths(lengths)
        length = window
        if own.goes_on and not writer.diffusion.block_size:
            # A text written block by block ends where its end token falls; others end here.
            length = int(draw_lengths(writer.lengths, own.known_tokens, 1, rng)[0])
        row = own.lay_out(window, length, writer.block_tokens, per_latent)
        candidates.append(Candidate(request, number, own, length, row))
    return candidates


def _write(writer: Writer, plan: Plan, candidates: Sequence[Candidate]) -> Iterator[Finished]:
    """The candidates in order, in batches of one size: the last is filled up."""
    size = min(candidates[0].request.config.batch_size, len(candidates))
    for start in range(0, len(candidates), size):
        batch = list(candidates[start : start + size])
        count = len(batch)
        batch += [batch[-1]] * (size - count)
        rows = [c.row for c in batch]
        tokens, segments, known, inside = (np.stack(x) for x in zip(*rows, strict=True))
        page = Page(tokens, segments, known[:, :: writer.models.vae.tokens_per_latent], inside)
        dials = Dials.of([c.key for c in batch], [c.request.config for c in batch])
        written = write_tokens(writer.params, writer.latents, page, dials, plan=plan)
        written = jax.device_get(written)
        for i, candidate in enumerate(batch[:count]):
            yield _finish(writer.tokenizer, candidate, jax.tree.map(lambda x, i=i: x[i], written))


def _finish(tokenizer: Tokenizer, candidate: Candidate, written: Written) -> Finished:
    """The text of one row of what was written."""
    request, outline = candidate.request, candidate.outline

    def read(tokens_L):
        return outline.read(tokens_L, candidate.length, tokenizer)

    ids, text = read(written.tokens_BxL)
    drafts = []
    if written.trace:
        steps = [*written.trace.tokens_BxKxL[: request.config.steps - 1], written.tokens_BxL]
        for tokens_L, confidence_L in zip(steps, written.trace.confidence_BxKxL, strict=False):
            draft, words = read(tokens_L)
            confidence_L = np.where(candidate.row.known_L, 1.0, confidence_L)
            drafts.append(Draft(words, draft, confidence_L[: len(draft)].round(3).tolist()))
    given = candidate.row.known_L[: len(ids)].tolist()
    sample = Sample(request.prompt, text, ids, given, int(written.evaluations_B), drafts)
    return Finished(sample, float(written.likelihood_B))


def _choose(choose: str, finished: Sequence[Finished]) -> Sample:
    """One of the candidates, with the evaluations that all of them took."""
    best = 0
    if len(finished) > 1 and choose == "consensus":
        best = most_like_the_others([f.sample.text for f in finished])
    elif len(finished) > 1:
        best = int(np.argmax([f.likelihood for f in finished]))
    evaluations = sum(f.sample.evaluations for f in finished)
    return replace(finished[best].sample, evaluations=evaluations)


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
