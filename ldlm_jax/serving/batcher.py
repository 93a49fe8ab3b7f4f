"""One thread that owns the model: unlike requests wait in a bounded queue and share batches.

A batch of a model with blocks is generated to its end. Whole texts join a running batch and leave
it between two steps, see ``sampling.continuous``.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax

from ldlm_jax.errors import UserError
from ldlm_jax.sampling.candidates import Sample, row_count, spec_of
from ldlm_jax.sampling.config import CALL, knobs
from ldlm_jax.sampling.continuous import RunningBatch
from ldlm_jax.sampling.generate import Program, check_request, generate_requests
from ldlm_jax.sampling.likelihood import Likelihood, token_likelihoods
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Template
from ldlm_jax.serving.model import BlockListener
from ldlm_jax.workdir import LoadedRun

# Batches of a model with blocks are compiled for these numbers of steps, so that few programs serve
# all numbers.
_STEPS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256)


class Overloaded(Exception):
    """The queue is full."""


class Closed(Exception):
    """The server is shutting down."""


@dataclass(frozen=True)
class Limits:
    """What the queue takes.

    Attributes:
      max_batch: rows of one compiled call.
      queue: rows that may wait.
      gather_seconds: how long an idle model waits for company of a first request.
    """

    max_batch: int = 32
    queue: int = 256
    gather_seconds: float = 0.005


@dataclass(eq=False)
class Job:
    """One text to generate.

    Attributes:
      request: what is asked for.
      done: called with the sample, its likelihood if it is scored, or an exception; in the
        batcher's thread.
      on_block: called there with the tokens (T,) of each finished block; None where nobody looks.
      on_draft: called there now and then with what a whole text would be by now; it needs
        ``keep_drafts``. None where nobody looks.
      keep_drafts: keep what each step would decode to.
      scored: also ask for the likelihood of its tokens.
      template: of the request, once it is checked.
      rows: that it takes in a batch.
      cancelled: nobody waits for it any more.
    """

    request: Request
    done: Callable[[Sample | Exception, Likelihood | None], None]
    on_block: Callable[[Sequence[int]], None] | None = None
    on_draft: Callable[[str], None] | None = None
    keep_drafts: bool = False
    scored: bool = False
    template: Template | None = None
    rows: int = 1
    cancelled: bool = False

    @property
    def early(self) -> bool:
        """Whether it may stop before its last step."""
        return self.request.config.stable_steps > 0

    @property
    def kind(self) -> tuple:
        """What jobs of one batch have in common."""
        config = self.request.config
        return (self.keep_drafts, self.early, *(getattr(config, name) for name in knobs(CALL)))


@dataclass
class Counts:
    """What happened so far: batches by their number of rows, and seconds of generating."""

    batches: Counter = field(default_factory=Counter)
    busy_seconds: float = 0.0


class Batcher:
    """The queue and its thread. Submit and cancel from any thread."""

    def __init__(self, run: LoadedRun, limits: Limits):
        self.run, self.limits, self.counts = run, limits, Counts()
        self._generator = run.generator
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing, self._blocks = False, BlockListener()
        self._running: dict[tuple, RunningBatch] = {}  # by kind; at most one
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        with self._changed:
            return sum(job.rows for job in self._queue)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, all or none.

        Raises:
          UserError: a request is impossible for this model.
          Overloaded: they do not fit the queue.
          Closed: the server is shutting down.
        """
        for job in jobs:
            if job.request.config.steps > _STEPS[-1]:
                raise UserError(f"steps = {job.request.config.steps}: at most {_STEPS[-1]} here.")
            job.template = check_request(self._generator, job.request)
            job.rows = row_count(job.request, job.template)
            if job.rows > self.limits.max_batch:
                raise UserError(
                    f"best_of = {job.rows}: at most {self.limits.max_batch} texts to choose from."
                )
            # One batch is one compiled call, whatever the config says of batches.
            config = replace(job.request.config, batch_size=self.limits.max_batch)
            job.request = replace(job.request, config=config)
        with self._changed:
            if self._closing:
                raise Closed
            if self.waiting + sum(job.rows for job in jobs) > self.limits.queue:
                raise Overloaded
            self._queue.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Give up jobs: those that wait leave the queue, others finish unseen."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
                if job in self._queue:
                    self._queue.remove(job)

    def close(self) -> None:
        """Finish the batch under way, and answer all that wait with ``Closed``."""
        with self._changed:
            self._closing = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for job in left:
            job.done(Closed(), None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            start = time.perf_counter()
            generate = self._generate if self._generator.diffusion.block_size else self._run
            try:
                generate(batch)
            except Exception as error:  # none of them may take the thread, and all others, along
                for job in batch:
                    job.done(error, None)
            self.counts.busy_seconds += time.perf_counter() - start

    def _next_batch(self) -> list[Job]:
        """Jobs of the first one's kind, in order, as many as fit; none when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._closing:
                return []
            deadline = time.monotonic() + self.limits.gather_seconds
            while self.waiting < self.limits.max_batch:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            if not self._queue:  # all were given up meanwhile
                return self._next_batch() if not self._closing else []
            kind, batch, room = self._queue[0].kind, [], self.limits.max_batch
            for job in tuple(self._queue):
                if job.kind == kind and job.rows <= room:
                    batch.append(job)
                    room -= job.rows
                    self._queue.remove(job)
            return batch

    def _joining(self, kind: tuple, room: int) -> list[Job]:
        """The next jobs, as far as they are of that kind and there is room."""
        with self._changed:
            joining: list[Job] = []
            # A job of another kind is next once the batch is over: nobody overtakes it for ever.
            while self._queue and self._queue[0].kind == kind and self._queue[0].rows <= room:
                joining.append(self._queue.popleft())
                room -= joining[-1].rows
            return joining

    def _run(self, jobs: list[Job]) -> None:
        """Generate whole texts until none of their kind is left; ``jobs`` are those under way."""
        kind, joining, rows = jobs[0].kind, jobs[:], sum(job.rows for job in jobs)
        batch = self._running.pop(kind, None) or self._empty(jobs[0])
        with self.run.use_sharding():
            batch.resize(self._size(rows))
            while jobs:
                for job in joining:
                    batch.join(job, job.request, job.template)
                self.counts.batches[batch.busy] += 1
                for job, sample in batch.step():
                    self._answer(job, sample)
                    jobs.remove(job)
                shown = [job for job in jobs if job.on_draft and not job.cancelled]
                for job, text in batch.drafts(shown):
                    job.on_draft(text)
                # A client that has left frees its rows.
                left = [job for job in jobs if job.cancelled]
                batch.drop(left)
                jobs[:] = [job for job in jobs if job not in left]
                joining = self._joining(kind, self.limits.max_batch - batch.busy)
                jobs += joining
                batch.resize(self._size(batch.busy + sum(job.rows for job in joining)))
        self._running = {kind: batch}

    def _generate(self, batch: list[Job]) -> None:
        rows = sum(job.rows for job in batch)
        self.counts.batches[rows] += 1
        starts = [sum(job.rows for job in batch[:i]) for i in range(len(batch))]
        streamed = [(job, at) for job, at in zip(batch, starts, strict=True) if job.on_block]

        def show(tokens_BxT) -> None:
            for job, at in streamed:
                if not job.cancelled:
                    job.on_block(tokens_BxT[at].tolist())

        requests = [job.request for job in batch]
        on_block = self._blocks if streamed else None
        with self._blocks.shown_to(show), self.run.use_sharding():
            samples = list(
                generate_requests(
                    self._generator, requests, batch[0].keep_drafts, on_block,
                    self._program(rows, requests),
                )
            )  # fmt: skip
            jax.effects_barrier()  # the last block may still be on its way
            for job, sample in zip(batch, samples, strict=True):
                self._answer(job, sample)

    def _empty(self, job: Job) -> RunningBatch:
        """A batch for jobs of that kind."""
        spec = replace(
            spec_of(self._generator, [(job.request, job.template)]), steps=_STEPS[-1],
            in_use=frozenset(("stable_steps",) if job.early else ()), traced=job.keep_drafts,
            scored=False,
        )  # fmt: skip
        return RunningBatch(self._generator, 1, spec)

    def _program(self, rows: int, requests: Sequence[Request]) -> Program:
        """A size that other batches have, too."""
        most = max(request.config.steps for request in requests)
        steps = next(n for n in _STEPS if n >= most)
        return Program(self._size(rows), steps)

    def _size(self, rows: int) -> int:
        """Rows that are compiled for, at least so many."""
        return next(n for n in self._sizes if n >= rows)

    @property
    def _sizes(self) -> list[int]:
        """Numbers of rows that are compiled for, ascending."""
        most = self.limits.max_batch
        return sorted({1, min(8, most), most})

    def _answer(self, job: Job, sample: Sample) -> None:
        if not job.cancelled:
            job.done(sample, self._score(job, sample) if job.scored else None)

    def _score(self, job: Job, sample: Sample) -> Likelihood:
        """Of all tokens of a sample, what was given among them."""
        return token_likelihoods(self._generator, [([], sample.tokens)])[0]

    def warm_up(self) -> None:
        """Compile what most requests need."""
        config = self.run.experiment.sample
        for rows in self._sizes:
            done = threading.Event()
            jobs = [Job(Request("", n, 0, config), lambda *_, d=done: d.set()) for n in range(rows)]
            self.submit(jobs)
            done.wait()
