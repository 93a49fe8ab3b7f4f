"""From requests to text: the one path used by the command line, the evaluations and examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.errors import UserError
from ldlm_jax.models.networks import LatentStats, Networks
from ldlm_jax.parallel.sharding import row_multiple
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import CALL, SampleConfig, knobs, row_params
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.rerank import most_like_the_others
from ldlm_jax.sampling.spec import ConditioningBatch, Generated, Spec
from ldlm_jax.sampling.template import Template, TokenRow


@dataclass(frozen=True)
class Generator:
    """A trained model, ready to generate.

    Attributes:
      networks: the networks.
      diffusion: how the denoiser was trained.
      params: parameters, averaged ones for best text; a backbone's weights among them.
      latents: statistics of the latent channels.
      tokenizer: of the training run.
      lengths: how many training documents have each length, 0 to the window.
    """

    networks: Networks
    diffusion: DiffusionConfig
    params: dict
    latents: LatentStats
    tokenizer: Tokenizer
    lengths: Sequence[int]

    @property
    def window(self) -> int:
        """Tokens in a row of training."""
        return len(self.lengths) - 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; of a latent where whole texts are generated."""
        return max(1, self.diffusion.block_size) * self.networks.vae.tokens_per_latent

    def in_blocks(self, size: int) -> "Generator":
        """The same model, generating ``size`` latents at once; 0 for as many as in training."""
        return replace(self, diffusion=self.diffusion.in_blocks(size))

    def row_length(self, config: SampleConfig) -> int:
        """Tokens in a row that is generated, whole blocks."""
        return -(-(config.length or self.window) // self.block_tokens) * self.block_tokens


class Program(NamedTuple):
    """The size of a compiled call; what a batch does not need of it is left empty, so that batches
    of different sizes share one."""

    rows: int
    steps: int


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


def generate(
    generator: Generator,
    config: SampleConfig,
    seed: int,
    *,
    num_samples: int = 1,
    prompt: str = "",
    keep_drafts: bool = False,
) -> Iterator[Sample]:
    """Generate several texts of one seed; see ``generate_requests``.

    Args:
      generator: the model.
      config: steps, solver, guidance.
      seed: of all randomness; the same seed gives the same texts.
      num_samples: how many.
      prompt: given beginning of every text, or empty.
      keep_drafts: keep what each step would decode to.
    """
    request = Request(prompt, seed, config=config)
    return generate_requests(generator, request.several(num_samples), keep_drafts)


def generate_requests(
    generator: Generator,
    requests: Sequence[Request],
    keep_drafts: bool = False,
    on_block: Callable[[int, np.ndarray], None] | None = None,
    program: Program | None = None,
) -> Iterator[Sample]:
    """Generate the texts that were asked for, in order, batch by batch.

    A batch is one compiled call whatever its requests have of their own; it takes as many steps as
    the one that asked for most. A request that asks for the best of several, or leaves the length
    of a span open, takes several rows.

    Args:
      generator: the model.
      requests: what to generate.
      keep_drafts: keep what each step would decode to.
      on_block: see ``spec.Spec``; the rows are those of the batch.
      program: the least that is compiled for.

    Raises:
      UserError: see ``check_request``; or the requests differ in what must be alike.
    """
    if not requests:
        return
    asked = [(request, check_request(generator, request)) for request in requests]
    generator = generator.in_blocks(requests[0].config.block_size)
    spec = replace(_spec(generator, asked), traced=keep_drafts, on_block=on_block)
    groups = [_candidates(generator, request, template) for request, template in asked]
    rows = 1
    if program:
        rows, spec = program.rows, replace(spec, steps=max(spec.steps, program.steps))
    finished = _run(generator, spec, [c for group in groups for c in group], rows)
    for request, group in zip(requests, groups, strict=True):
        yield _rerank(request.config.rerank, list(islice(finished, len(group))))


def _template(generator: Generator, request: Request) -> Template:
    """The request's text in tokens; text that cannot fit is refused before it is cut into any."""
    given = sum(len(p.encode()) for p in request.pieces if isinstance(p, str))
    most = generator.row_length(request.config) * generator.tokenizer.longest
    if given > most:
        raise UserError(
            f"given text of {given:,} bytes cannot fit the window: the text may have "
            f"{generator.row_length(request.config)} tokens. Shorten it."
        )
    return Template.of(request.pieces, generator.tokenizer)


def check_request(generator: Generator, request: Request) -> Template:
    """The template of a request.

    Raises:
      UserError: given text does not fit the window, or guidance or infilling was asked of a model
        that never trained with them.
    """
    config, diffusion = request.config, generator.diffusion
    config.check_fits(diffusion)
    generator = generator.in_blocks(config.block_size)
    template = _template(generator, request)
    # One more for the end, or for something to generate.
    needed = template.fixed_tokens + len(template.open_spans) + 1
    most = generator.row_length(config)
    if most > generator.window and (not diffusion.block_size or template.infills):
        raise UserError(
            f"length = {config.length} is beyond the model's window of {generator.window} tokens, "
            "where only a model with diffusion.block_size goes on, and only to continue."
        )
    if needed > most:
        raise UserError(
            f"given text and spans take {needed} tokens, with one for what comes after; the "
            f"text may have {most} (the model's window is {generator.window}). Shorten it."
        )
    if template.infills and not diffusion.infills:
        raise UserError(
            "this model was trained to continue, not to generate what observed text follows: train "
            "with diffusion.suffix, diffusion.infill or diffusion.random_spans above 0."
        )
    learned = diffusion.condition_dropout > 0 and (diffusion.prefix > 0 or diffusion.infills)
    if config.guidance != 1.0 and template.fixed_tokens and not learned:
        raise UserError(
            "guidance needs a model trained with diffusion.condition_dropout and a share of "
            "observed text (diffusion.prefix) above 0; use guidance 1."
        )
    return template


def row_count(request: Request, template: Template) -> int:
    """Rows that a request takes: the texts of which one is kept."""
    return max(request.config.best_of, len(LENGTHS) * bool(template.open_spans))


def _spec(generator: Generator, asked: Sequence[tuple[Request, Template]]) -> Spec:
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


class Finished(NamedTuple):
    """A generated candidate, and its log-likelihood a token."""

    sample: Sample
    likelihood: float


def _candidates(generator: Generator, request: Request, template: Template) -> list[Candidate]:
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


def _run(
    generator: Generator, spec: Spec, candidates: Sequence[Candidate], rows: int
) -> Iterator[Finished]:
    """The candidates in order, in batches of one size, at least ``rows``: the last is filled up."""
    config = candidates[0].request.config
    fixed = config.batch_shape == "fixed"
    size = max(rows, config.batch_size if fixed else min(config.batch_size, len(candidates)))
    size = -(-size // row_multiple()) * row_multiple()
    for start in range(0, len(candidates), size):
        batch = list(candidates[start : start + size])
        count = len(batch)
        batch += [batch[-1]] * (size - count)
        tokens, segments, observed, no_end = (
            np.stack(x) for x in zip(*(c.row for c in batch), strict=True)
        )
        observed = observed[:, :: generator.networks.vae.tokens_per_latent]
        given = ConditioningBatch(tokens, segments, observed, no_end)
        rows = row_params([c.key for c in batch], [c.request.config for c in batch])
        generated = generate_tokens(generator.params, generator.latents, given, rows, spec=spec)
        generated = jax.device_get(generated)
        for i, candidate in enumerate(batch[:count]):
            row = jax.tree.map(lambda x, i=i: x[i], generated)
            yield _finish(generator.tokenizer, candidate, row)


def _finish(tokenizer: Tokenizer, candidate: Candidate, row: Generated) -> Finished:
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


def _rerank(how: str, finished: Sequence[Finished]) -> Sample:
    """One of the candidates, with the evaluations that all of them took."""
    best = 0
    if len(finished) > 1 and how == "mbr":
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
