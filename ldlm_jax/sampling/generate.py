"""From requests to text: the one path used by the command line, the evaluations and examples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np

from ldlm_jax.errors import UserError
from ldlm_jax.parallel.sharding import row_multiple
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.candidates import (
    Candidate,
    Finished,
    Sample,
    batch_of,
    candidates_of,
    finish,
    rerank,
    row_count,
    spec_of,
)
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.continuous import run_continuously
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.spec import Spec
from ldlm_jax.sampling.template import Template


class Program(NamedTuple):
    """The size of a compiled call; what a batch does not need of it is left empty, so that batches
    of different sizes share one."""

    rows: int
    steps: int


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
    the one that asked for most. Of whole texts that stop early, more than one batch holds, each row
    goes to the next text at once (``continuous``). A request that asks for the best of several, or
    leaves the length of a span open, takes several rows.

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
    spec = replace(spec_of(generator, asked), traced=keep_drafts, on_block=on_block)
    if program:
        spec = replace(spec, steps=max(spec.steps, program.steps))
    counts = [row_count(request, template) for request, template in asked]
    size = _rows(requests[0].config, sum(counts), program.rows if program else 1)
    if spec.early and size < sum(counts) and not (generator.diffusion.block_size or on_block):
        yield from run_continuously(generator, asked, spec, max(size, *counts))
        return
    groups = [candidates_of(generator, request, template) for request, template in asked]
    finished = _run(generator, spec, [c for group in groups for c in group], size)
    for request, group in zip(requests, groups, strict=True):
        yield rerank(request.config.rerank, list(islice(finished, len(group))))


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


def _rows(config: SampleConfig, count: int, least: int) -> int:
    """Rows of a compiled call for so many texts."""
    fixed = config.batch_shape == "fixed"
    size = max(least, config.batch_size if fixed else min(config.batch_size, count))
    return -(-size // row_multiple()) * row_multiple()


def _run(
    generator: Generator, spec: Spec, candidates: Sequence[Candidate], size: int
) -> Iterator[Finished]:
    """The candidates in order, in batches of one size: the last is filled up."""
    for start in range(0, len(candidates), size):
        batch = list(candidates[start : start + size])
        count = len(batch)
        batch += [batch[-1]] * (size - count)
        given, rows = batch_of(batch, generator.networks.vae.tokens_per_latent)
        generated = generate_tokens(generator.params, generator.latents, given, rows, spec=spec)
        generated = jax.device_get(generated)
        for i, candidate in enumerate(batch[:count]):
            row = jax.tree.map(lambda x, i=i: x[i], generated)
            yield finish(generator.tokenizer, candidate, row)
