"""The loop, top to bottom: restore, data, step, log, evaluate, save, stop."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import jax
from flax.core import meta

from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import Assembly, Experiment, build, resolve
from ldlm_jax.data.dataset import Prepared, prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals import REGISTRY, EvalContext, run_evals
from ldlm_jax.models.networks import with_backbone
from ldlm_jax.parallel.distributed import (
    interrupt_as_preemption,
    is_main_process,
    main_process_first,
)
from ldlm_jax.parallel.lifeline import lifeline
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import batch_sharding, own_rows, put_batch, use_sharding
from ldlm_jax.phases import begins, phase_at
from ldlm_jax.plan.flops import step_flops
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.serving.hub import WarmStart
from ldlm_jax.teachers.loader import LoadedTeacher, load_teacher
from ldlm_jax.telemetry.loggers import Logger, check_loggers, open_loggers
from ldlm_jax.telemetry.metrics import Log, MetricsWriter
from ldlm_jax.telemetry.profiler import Profiler
from ldlm_jax.telemetry.screen import Screen
from ldlm_jax.telemetry.throughput import Throughput
from ldlm_jax.telemetry.watchdog import Watchdog
from ldlm_jax.train_state import TrainState, abstract_state, init_state
from ldlm_jax.train_step import compiled_step
from ldlm_jax.validate import check_mesh, local_path
from ldlm_jax.workdir import Workdir


def train(config, workdir: str, init: str = "", log: Sequence[str] = ()) -> None:
    """Train the experiment of a config in a run folder, or resume it there.

    Args:
      config: from ``config.load_config``.
      workdir: the run's folder; created if missing.
      init: an exported model with whose weights a new run begins; empty for none.
      log: writers beside JSONL and TensorBoard, see ``telemetry.loggers``.

    Raises:
      UserError: the config, the data or the folder is not usable.
    """
    experiment = resolve(config)
    for name in experiment.train.evals:
        if name not in REGISTRY:
            raise UserError(f"train.evals: unknown {name!r}; {did_you_mean(name, REGISTRY)}")
    check_loggers(log)
    run = TrainingRun.create(experiment, init)
    folder = Workdir(local_path(workdir))
    facts = {
        "lengths": run.prepared.stats["lengths"],
        "teacher": experiment.teacher.model,
        "backbone": run.assembly.backbone.checksum,
        "init": init,
    }
    main_process_first("folder", lambda: folder.start(config, run.prepared.tokenizer, facts))
    held = folder.exclusive() if is_main_process() else contextlib.nullcontext()
    with held, lifeline(), use_sharding(run.assembly.mesh, experiment.sharding):
        if is_main_process():
            folder.record(config)
        _loop(run, folder, partial(open_loggers, log, folder.path, config.to_dict()))


@dataclass(frozen=True)
class TrainingRun:
    """All that a training needs: what the config names, on the mesh; the corpus; the teacher; an
    exported model to begin with, if one is named."""

    assembly: Assembly
    prepared: Prepared
    teacher: LoadedTeacher | None
    warm_start: WarmStart | None = None

    @classmethod
    def create(cls, experiment: Experiment, init: str = "") -> "TrainingRun":
        """Make it; the corpus is prepared if it is not there yet."""
        mesh = make_mesh(experiment.mesh)
        check_mesh(experiment, mesh)
        prepared = main_process_first("data", lambda: prepare(experiment.data))
        teacher = load_teacher(experiment, prepared, mesh)
        assembly = build(experiment, mesh, prepared.tokenizer.vocab_size, teacher)
        warm_start = None
        if init:
            params = meta.unbox(assembly.networks.abstract(experiment.data.window))
            warm_start = WarmStart(init, prepared.tokenizer, params)
        return cls(assembly, prepared, teacher, warm_start)

    @property
    def experiment(self) -> Experiment:
        """The config."""
        return self.assembly.experiment

    def first_state(self) -> TrainState:
        """The state before the first step."""
        made, config = self.assembly, self.experiment
        state = init_state(
            made.networks, made.optimizer, config.train.seed, config.data.window, made.mesh,
            config.sharding,
        )  # fmt: skip
        return self.warm_start.apply(state) if self.warm_start else state

    def restore(self, checkpoints: Checkpoints) -> TrainState:
        """The newest state that can be read, or the first; newer ones are set aside."""
        made, config = self.assembly, self.experiment
        abstract = abstract_state(
            made.networks, made.optimizer, config.data.window, made.mesh, config.sharding
        )
        state = checkpoints.restore(abstract)
        if state is None:
            return self.first_state()
        checkpoints.set_aside_after(int(state.step))
        return state

    @property
    def _rows(self):
        """Sharding of batches, and which of their rows this process holds."""
        sharding = batch_sharding(self.assembly.mesh, self.experiment.sharding)
        return sharding, own_rows(sharding, self.experiment.train.batch_size)

    def batches(self, start: int = 0) -> Iterator[dict]:
        """Training batches from a step on, on the mesh."""
        size, (sharding, rows) = self.experiment.train.batch_size, self._rows
        beside = {"add": self.teacher.add, "cache": self.teacher.cache} if self.teacher else {}
        put = partial(put_batch, sharding=sharding)
        return train_batches(
            self.prepared, self.experiment.data, size, start, rows, put=put, **beside
        )

    def held_out(self) -> list[dict]:
        """The batches that evaluations read, on the mesh."""
        config, (sharding, rows) = self.experiment.train, self._rows
        batches = eval_batches(
            self.prepared, "validation", config.batch_size, config.eval_batches, rows
        )
        return [put_batch(batch, sharding) for batch in batches]

    def generator(self, state: TrainState) -> Generator:
        """The averaged model of a state, ready to generate."""
        params = with_backbone(state.ema, self.assembly.frozen.backbone)
        return Generator(
            self.assembly.networks, self.experiment.diffusion, params, state.latents,
            self.prepared.tokenizer, tuple(self.prepared.stats["lengths"]),
        )  # fmt: skip


def _loop(run: TrainingRun, folder: Workdir, loggers: Callable[[], list[Logger]]) -> None:
    experiment, config = run.experiment, run.experiment.train
    checkpoints = Checkpoints(
        folder.checkpoints, keep_last=config.keep_last, keep_every=config.keep_every,
        best_metric=config.best_metric,
    )  # fmt: skip
    state = run.restore(checkpoints)
    start, frozen = int(state.step), run.assembly.frozen
    step_fn = compiled_step(run.assembly.recipe, run.assembly.optimizer)
    key, batches, held_out = jax.random.key(config.seed), run.batches(start), run.held_out()
    writer = MetricsWriter(folder.path, silent := not is_main_process(), start, loggers)
    screen = Screen(config.num_steps, start, silent)
    batches = chain([first := next(batches)], batches)
    flops_of = partial(step_flops, run.assembly.recipe, frozen, jax.eval_shape(lambda: first))
    throughput = Throughput(first["tokens"].size, flops_of, start)
    log = Log(writer, screen, throughput)
    profiler = Profiler(folder.path / "profile", config)
    watchdog = Watchdog(config.stall_timeout)
    _announce(screen, state, folder, start, config.num_steps)
    evaluated, phase = {}, None
    with contextlib.ExitStack() as closing:
        # Each is closed whatever becomes of the others; the last one named is closed first.
        for part in (checkpoints, writer, screen, profiler, watchdog):
            closing.callback(part.close)
        closing.enter_context(interrupt_as_preemption(screen.line))
        for step in range(start, config.num_steps):
            profiler.before(step)
            batch = next(batches)
            throughput.book("input")
            before, phase = phase, phase_at(experiment.phases, step)
            if phase != before:
                screen.line(begins(experiment.phases, before, phase))
            state, metrics = step_fn(state, batch, key, frozen, phase=phase)
            log.under_way(metrics)
            throughput.book("step")
            done, last = step + 1, step + 1 == config.num_steps
            screen.step(done)
            watchdog.alive()
            if done % config.log_every == 0 or last or step == start:
                log.put(done, phase, metrics)
            profiler.after(step, metrics)
            preempted = checkpoints.reached_preemption(done)
            if not preempted and (done % config.eval_every == 0 or last):
                log.flush()
                evaluated = _evaluate(run, state, held_out, done, screen, first=not evaluated)
                writer.write(done, evaluated)
                screen.evaluation(done, evaluated)
                throughput.book("evaluation")
            if done % config.checkpoint_every == 0 or last or preempted:
                log.flush()
                # Rather the checkpoints from before the trouble than this one in their place.
                if log.skipped_in_a_row > 1:
                    screen.line(f"no checkpoint of step {done}: the last steps were skipped")
                else:
                    checkpoints.save(done, state, _scores(evaluated, config.best_metric))
                throughput.book("checkpoint")
            if preempted:
                screen.line(f"told to stop: saved step {done}")
                break
            watchdog.alive()


def _announce(screen: Screen, state: TrainState, folder: Workdir, start: int, end: int) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    screen.line(f"{count / 1e6:.2f}M parameters on {jax.device_count()} x {jax.default_backend()}")
    if start >= end:
        screen.line(
            f"{folder.path} is finished: it has {start} of {end} steps. To go on, give a larger "
            f"number, such as train.num_steps={2 * start}; for another run, another --workdir."
        )
    elif start:
        screen.line(f"resuming {folder.path} at step {start}")


def _scores(evaluated: dict, best_metric: str) -> dict | None:
    """Numbers to store with a checkpoint; None before the first evaluation."""
    scores = {k: v for k, v in evaluated.items() if not isinstance(v, str)}
    if best_metric and scores and best_metric not in scores:
        raise UserError(
            f"train.best_metric = {best_metric!r} is not evaluated; "
            + did_you_mean(best_metric, scores)
        )
    return scores or None


def _evaluate(
    run: TrainingRun, state: TrainState, held_out: list, step: int, screen: Screen, first: bool
) -> dict:  # fmt: skip
    config = run.experiment.train
    context = EvalContext(
        run.generator(state), held_out, run.experiment.sample, config.eval_samples,
        config.eval_steps, config.seed, run.prepared,
    )  # fmt: skip
    # A phase that has not trained the denoiser yet leaves nothing to evaluate of it.
    trained = phase_at(run.experiment.phases, step - 1)
    names = [name for name in config.evals if name == "reconstruction" or trained.denoises]
    if first and names:
        screen.line("evaluating; the first time it is compiled ...")
    return run_evals(tuple(names), context)
