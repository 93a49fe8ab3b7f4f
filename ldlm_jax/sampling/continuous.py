"""Continuous batching of whole texts: each leaves the batch after its own last step, another joins.

The scan of ``blockwise.generate_tokens`` ends with the slowest text of a batch. Here a compiled
call takes a few steps; between two calls the rows of finished texts go to texts that wait. A text
is the one that it would be alone.

Shape letters: B rows, L tokens, N latents, D latent channels, K steps of a call.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.diffusion.rows import row_keys, where_rows
from ldlm_jax.diffusion.solvers import EarlyStop, Interval, Progress, advance, begin
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.parallel.sharding import replicate
from ldlm_jax.sampling.blockwise import BlockwiseSampler, Problem
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
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.guided import Block
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.spec import ConditioningBatch, Generated, Spec, Trace
from ldlm_jax.sampling.template import Template

# Steps of one compiled call: a row that finishes waits for the end of the call.
STEPS = 2
# For rows that take all of their steps.
_NEVER = EarlyStop((), lambda state, extra: (state, jnp.zeros((), bool)))


class BatchState(NamedTuple):
    """A batch between two calls.

    Attributes:
      progress: of its rows; those without a text have stopped.
      given_BxNxD: clean latents of the text that is given.
    """

    progress: Progress
    given_BxNxD: jax.Array


def _first(sampler: BlockwiseSampler, given_BxNxD) -> tuple[Problem, Progress]:
    """What there is to solve, and every row before its first step."""
    given = sampler.given
    block = Block(
        sampler.layout, given.observed_BxN, given_BxNxD, given.no_end_BxL, {},
        partial(sampler.encode, first=0),
    )  # fmt: skip
    problem = sampler.problem(block, 0)
    problem = problem._replace(early_stop=problem.early_stop or _NEVER)
    first = begin(problem.denoise, problem.start_BxSxD, problem.keys_B, problem.early_stop)
    return problem, first._replace(stopped_B=~jnp.any(block.to_generate_BxS, axis=1))


@jit(static_argnames="spec")
def take_steps(
    params, latents: LatentStats, given: ConditioningBatch, rows: dict, state: BatchState, fresh_B,
    *, spec: Spec,
) -> tuple[BatchState, Generated]:  # fmt: skip
    """A few steps of every row that has not finished.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      given: what is given.
      rows: random keys and options of each row, see ``config.row_params``.
      state: of the call before.
      fresh_B: rows that begin now.
      spec: everything static; ``steps`` is the most that a row may take.

    Returns:
      The new state, and what has become of the rows: texts of those that have stopped, and the
      drafts (B, K, L) of these steps alone.
    """
    sampler = BlockwiseSampler.create(params, latents, given, rows, spec)
    given_BxNxD = jax.lax.cond(
        jnp.any(fresh_B),
        lambda: where_rows(fresh_B, sampler.encode(given.tokens_BxL, 0), state.given_BxNxD),
        lambda: state.given_BxNxD,
    )
    problem, first = _first(sampler, given_BxNxD)
    finished_B = state.progress.stopped_B & ~fresh_B
    progress = jax.tree.map(partial(where_rows, fresh_B), first, state.progress)

    def body(progress: Progress, _):
        now_B = jnp.minimum(progress.steps_B, spec.steps - 1)
        t_BxN, s_BxN = (
            jnp.take_along_axis(problem.times_KxBxS, (now_B + i)[None, :, None], axis=0)[0]
            for i in (0, 1)
        )
        now = Interval(t_BxN, s_BxN, row_keys(problem.keys_B, now_B))
        progress = advance(problem.denoise, progress, now, spec.solver, problem.early_stop)
        stopped_B = progress.stopped_B | (progress.steps_B >= rows["steps"])
        return progress._replace(stopped_B=stopped_B), progress.at.extra

    progress, extra = jax.lax.scan(body, progress, length=STEPS)

    def read() -> tuple[jax.Array, jax.Array]:
        tokens_BxL = problem.decode(progress.at.z)
        tokens_BxL = jnp.where(sampler.observed_BxL, given.tokens_BxL, tokens_BxL)
        return tokens_BxL, sampler.likelihood(tokens_BxL)

    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read))
    some = jnp.any(progress.stopped_B & ~finished_B)
    tokens_BxL, likelihood_B = jax.lax.cond(some, read, lambda: blank)
    trace = Trace(*(x.swapaxes(0, 1) for x in extra)) if spec.traced else None
    evaluations_B = progress.steps_B * spec.evaluations(rows)
    generated = Generated(tokens_BxL, evaluations_B, likelihood_B, trace)
    return jax.tree.map(replicate, (BatchState(progress, given_BxNxD), generated))


@dataclass(eq=False)
class _Group:
    """The candidates of one request, and what has become of each."""

    tag: Hashable
    request: Request
    template: Template
    finished: list[Finished | None]


@dataclass
class _Row:
    """A candidate on its way, and its drafts so far."""

    group: _Group
    index: int
    candidate: Candidate
    drafts: list[Trace]


class RunningBatch:
    """Texts on their way, of a model that writes whole texts.

    All must agree on the sampler's options of a CALL; see ``candidates.spec_of``.
    """

    def __init__(self, generator: Generator, size: int, spec: Spec):
        """A batch without a text.

        Args:
          generator: the model.
          size: rows.
          spec: what calls are compiled for, whether or not a text under way needs it: the most
            steps of any, whether drafts are kept, and ``in_use``, with ``stable_steps`` if any
            text may stop early. What else texts need is added while they are under way.
        """
        self._generator, self._spec = generator, spec
        self._rows: list[_Row | None] = [None] * size
        self._fresh: list[int] = []
        self._steps_B = np.zeros(size, int)
        self._state: BatchState | None = None
        self._given: ConditioningBatch | None = None
        self._options: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Rows."""
        return len(self._rows)

    @property
    def busy(self) -> int:
        """Rows in which there is a text."""
        return sum(row is not None for row in self._rows)

    def join(self, tag: Hashable, request: Request, template: Template) -> None:
        """Begin a text; there must be as many free rows as ``row_count`` says.

        Args:
          tag: under which ``step`` will return it.
          request: what is asked for.
          template: of ``check_request``.
        """
        candidates = candidates_of(self._generator, request, template)
        free = [i for i, row in enumerate(self._rows) if row is None][: len(candidates)]
        assert len(free) == len(candidates) == row_count(request, template)
        group = _Group(tag, request, template, [None] * len(candidates))
        for index, (at, candidate) in enumerate(zip(free, candidates, strict=True)):
            self._rows[at] = _Row(group, index, candidate, [])
            self._put(at, candidate)
        self._fresh += free

    def drop(self, tags: Sequence[Hashable]) -> None:
        """Give up texts: their rows are free."""
        for at, row in enumerate(self._rows):
            if row is not None and row.group.tag in tags:
                self._rows[at] = None

    def _put(self, at: int, candidate: Candidate) -> None:
        """Write a row of what the compiled call is given."""
        given, options = batch_of([candidate], self._generator.networks.vae.tokens_per_latent)
        options["keys"] = np.asarray(jax.random.key_data(options["keys"]))
        if self._given is None:
            shown = (given, options)
            self._given, self._options = jax.tree.map(lambda x: np.repeat(x, self.size, 0), shown)
        jax.tree.map(
            lambda whole, own: whole.__setitem__(at, own[0]),
            (self._given, self._options), (given, options),
        )  # fmt: skip

    def resize(self, size: int) -> None:
        """The same texts in a batch of another size, at least ``busy``."""
        if size == self.size:
            return
        order = [i for i, row in enumerate(self._rows) if row is not None]
        assert len(order) <= size
        self._fresh = [order.index(i) for i in self._fresh if i in order]
        self._rows = [self._rows[i] for i in order] + [None] * (size - len(order))
        index = np.array(order + [0] * (size - len(order)))
        self._steps_B = self._steps_B[index]
        if self._given is None:
            return
        held = (self._given, self._options)
        self._given, self._options = jax.tree.map(lambda x: x[index], held)
        if self._state is not None:
            self._state = _take_rows(self._state, index, np.arange(size) >= len(order))

    def step(self) -> list[tuple[Hashable, Sample]]:
        """Take a few steps, and return the texts that are finished."""
        asked = {id(row.group): row.group for row in self._rows if row}.values()
        own = spec_of(self._generator, [(group.request, group.template) for group in asked])
        spec = replace(
            self._spec, in_use=self._spec.in_use | own.in_use,
            scored=self._spec.scored or own.scored,
        )  # fmt: skip
        options = self._options | {"keys": jax.random.wrap_key_data(self._options["keys"])}
        model = self._generator.params, self._generator.latents
        if self._state is None:
            self._state = _blank(*model, self._given, options, spec)
        fresh_B = np.isin(np.arange(self.size), self._fresh)
        before_B = np.where(fresh_B, 0, self._steps_B)
        self._state, generated = take_steps(
            *model, self._given, options, self._state, fresh_B, spec=spec
        )
        self._fresh, progress = [], self._state.progress
        got = jax.device_get((generated, progress.stopped_B, progress.steps_B))
        generated, stopped_B, self._steps_B = got
        return self._take(generated, stopped_B, self._steps_B - before_B)

    def drafts(self, tags: Sequence[Hashable]) -> Iterator[tuple[Hashable, str]]:
        """What each of these texts, if it is under way, would be by now; there must be drafts.

        Those of which the best of several is kept have none.
        """
        for row in filter(None, self._rows):
            if row.group.tag in tags and row.drafts and len(row.group.finished) == 1:
                tokens_L, candidate = row.drafts[-1].tokens_BxKxL[-1], row.candidate
                tokenizer = self._generator.tokenizer
                yield (
                    row.group.tag,
                    candidate.template.from_row(tokens_L, candidate.length, tokenizer)[1],
                )

    def _take(self, generated: Generated, stopped_B, took_B) -> list:
        """Finished texts, whose rows are free again."""
        done = []
        for at, row in enumerate(self._rows):
            if row is None:
                continue
            own = jax.tree.map(lambda x, at=at: x[at], generated)
            if own.trace:
                row.drafts.append(Trace(*(x[: took_B[at]] for x in own.trace)))
            if stopped_B[at]:
                self._rows[at], group = None, row.group
                own = own._replace(trace=_whole_trace(row) if own.trace else None)
                tokenizer = self._generator.tokenizer
                group.finished[row.index] = finish(tokenizer, row.candidate, own)
                if all(group.finished):
                    done.append((group.tag, rerank(group.request.config.rerank, group.finished)))
        return done


def _whole_trace(row: _Row) -> Trace:
    """Drafts of all steps that were asked for; the last stays once the text has stopped."""
    joined = [np.concatenate(parts) for parts in zip(*row.drafts, strict=True)]
    if not len(joined[0]):  # nothing was left to generate
        joined = [np.zeros_like(x, shape=(1, *x.shape[1:])) for x in joined]
    missing = row.candidate.request.config.steps - len(joined[0])
    return Trace(*(np.pad(x, ((0, missing), (0, 0)), mode="edge") for x in joined))


def _blank(params, latents, given, options, spec: Spec) -> BatchState:
    """A batch in which no row has a text."""

    def state(params, latents, given, options) -> BatchState:
        sampler = BlockwiseSampler.create(params, latents, given, options, spec)
        given_BxNxD = sampler.encode(given.tokens_BxL, 0)
        return BatchState(_first(sampler, given_BxNxD)[1], given_BxNxD)

    shapes = jax.eval_shape(state, params, latents, given, options)
    row = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), shapes)
    count = len(given.tokens_BxL)
    return _take_rows(row, np.zeros(count, int), np.ones(count, bool))


@jit()
def _take_rows(state: BatchState, index_B, empty_B) -> BatchState:
    """The rows of these numbers, of which some are empty from now on."""
    # Where a call finds its state must not depend on what made it: that would compile it anew.
    state = jax.tree.map(lambda x: replicate(x[index_B]), state)
    stopped_B = state.progress.stopped_B | empty_B
    return state._replace(progress=state.progress._replace(stopped_B=stopped_B))


def run_continuously(
    generator: Generator, asked: Sequence[tuple[Request, Template]], spec: Spec, size: int
):
    """All texts in the order in which they were asked for, from one batch of that many rows.

    Args:
      generator: the model.
      asked: requests and their templates.
      spec: of all of them.
      size: rows, at least as many as any request takes.
    """
    batch = RunningBatch(generator, size, spec)
    begun, shown, finished = 0, 0, {}
    while shown < len(asked):
        while begun < len(asked) and row_count(*asked[begun]) <= batch.size - batch.busy:
            batch.join(begun, *asked[begun])
            begun += 1
        finished |= dict(batch.step())
        while shown in finished:
            yield finished.pop(shown)
            shown += 1
