"""The loop, top to bottom: restore, data, step, log, evaluate, save, stop."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import optax

from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import Experiment, resolve
from ldlm_jax.data.dataset import Prepared, prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals import REGISTRY, EvalContext, run_evals
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.distributed import first_alone, is_first
from ldlm_jax.parallel.mesh import make_mesh
from ldlm_jax.parallel.sharding import batch_sharding, in_force, own_rows, put_batch
from ldlm_jax.phases import LOSSES, phase_at
from ldlm_jax.sampling.generate import Writer
from ldlm_jax.teachers.backbone import Founded, load_foundation
from ldlm_jax.teachers.loader import Guide, load_guide
from ldlm_jax.telemetry.metrics import MetricsWriter, Screen
from ldlm_jax.telemetry.throughput import Account, Profiler
from ldlm_jax.train_state import TrainState, abstract_state, init_state
from ldlm_jax.train_step import Frozen, Recipe, compiled_step
from ldlm_jax.validate import check_mesh
from ldlm_jax.workdir import RunFolder

# Samples in an evaluation within the loop: enough to read, few enough to be cheap.
_LOOP_SAMPLES = 16
_LOOP_STEP_COUNTS = (5, 20)


def train(config, workdir: str) -> None:
    """Train the experiment of a config in a run folder, or resume it there.

    Args:
      config: from ``config.load_config``.
      workdir: the run's folder; created if missing.

    Raises:
      UserError: the config, the data or the folder is not usable.
    """
    experiment = resolve(config)
    for name in experiment.train.evals:
        if name not in REGISTRY:
            raise UserError(f"train.evals: unknown {name!r}; {did_you_mean(name, REGISTRY)}")
    setup = Setup.of(experiment)
    folder = RunFolder(Path(workdir))
    facts = {
        "lengths": setup.prepared.stats["lengths"],
        "teacher": experiment.teacher.model,
        "teacher_width": setup.guide.width if setup.guide else 0,
        "foundation": setup.founded.fingerprint,
    }
    first_alone("folder", lambda: folder.start(config, setup.prepared.tokenizer, facts))
    with in_force(setup.mesh, experiment.sharding):
        _run(setup, folder)


@dataclass(frozen=True)
class Setup:
    """All that a config names, made and ready to train.

    Attributes:
      experiment: the config.
      mesh: of the devices that are there.
      prepared: the corpus.
      guide: what the latents are aligned with, if anything.
      founded: the model that the TextVAE is built upon, if any.
      recipe: networks and losses.
      optimizer: for all of the run's steps.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    prepared: Prepared
    guide: Guide | None
    founded: Founded
    recipe: Recipe
    optimizer: optax.GradientTransformation

    @classmethod
    def of(cls, experiment: Experiment) -> "Setup":
        """Make them; the corpus is prepared if it is not there yet.

        Raises:
          UserError: mesh, data, teacher or foundation are not usable.
        """
        mesh = make_mesh(experiment.mesh)
        check_mesh(experiment, mesh)
        prepared = first_alone("data", lambda: prepare(experiment.data))
        guide = load_guide(experiment, prepared, mesh)
        founded = load_foundation(experiment.foundation, mesh, experiment.sharding)
        width = guide.width if guide else 0
        models = experiment.models(prepared.tokenizer.vocab_size, width, founded.foundation)
        recipe = experiment.recipe(models, guide.teacher if guide else None)
        optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
        return cls(experiment, mesh, prepared, guide, founded, recipe, optimizer)

    @property
    def frozen(self) -> Frozen:
        """What never learns."""
        return Frozen(self.guide.params if self.guide else None, self.founded.weights)

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """Of batches."""
        return batch_sharding(self.mesh, self.experiment.sharding)

    def first_state(self) -> TrainState:
        """The state before the first step."""
        config = self.experiment
        return init_state(
            self.recipe.models, self.optimizer, config.train.seed, config.data.window, self.mesh,
            config.sharding,
        )  # fmt: skip

    def restore(self, checkpoints: Checkpoints) -> TrainState:
        """The newest state that can be read, or the first; newer ones are discarded."""
        config = self.experiment
        abstract = abstract_state(
            self.recipe.models, self.optimizer, config.data.window, self.mesh, config.sharding
        )
        state = checkpoints.restore(abstract)
        if state is None:
            return self.first_state()
        checkpoints.discard_after(int(state.step))
        return state

    def batches(self, start: int = 0) -> Iterator[dict]:
        """Training batches from a step on, on the mesh."""
        size, sharding = self.experiment.train.batch_size, self.sharding
        beside = {"add": self.guide.add, "cache": self.guide.cache} if self.guide else {}
        rows = own_rows(sharding, size)
        batches = train_batches(self.prepared, self.experiment.data, size, start, rows, **beside)
        return (put_batch(batch, sharding) for batch in batches)

    def held_out(self) -> list[dict]:
        """The batches that evaluations read, on the mesh."""
        config, sharding = self.experiment.train, self.sharding
        rows = own_rows(sharding, config.batch_size)
        batches = eval_batches(
            self.prepared, "validation", config.batch_size, config.eval_batches, rows
        )
        return [put_batch(batch, sharding) for batch in batches]


def _run(setup: Setup, folder: RunFolder) -> None:
    experiment, config = setup.experiment, setup.experiment.train
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        best_metric=config.best_metric,
    )
    state = setup.restore(checkpoints)
    start = int(state.step)
    step_fn = compiled_step(setup.recipe, setup.optimizer)
    key, frozen = jax.random.key(config.seed), setup.frozen
    batches, held_out = setup.batches(start), setup.held_out()
    silent = not is_first()
    writer, screen = MetricsWriter(folder.path, silent), Screen(config.num_steps, start, silent)
    account = Account(experiment, setup.recipe, start)
    profiler = Profiler(folder.path / "profile", config)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    screen.line(f"{count / 1e6:.2f}M parameters on {jax.device_count()} x {jax.default_backend()}")
    if start:
        screen.line(f"resuming {folder.path} at step {start}")
    evaluated: dict = {}
    with contextlib.ExitStack() as closing:
        # Each is closed whatever becomes of the others; the last one named is closed first.
        for part in (checkpoints, writer, screen, profiler):
            closing.callback(part.close)
        for step in range(start, config.num_steps):
            profiler.before(step)
            batch = next(batches)
            account.lap("input")
            phase = phase_at(experiment.phases, step)
            state, metrics = step_fn(state, batch, key, frozen, phase=phase)
            account.lap("step")
            done, last = step + 1, step + 1 == config.num_steps
            screen.step(done)
            if done % config.log_every == 0 or last or step == start:
                values = {name: float(value) for name, value in metrics.items()}
                account.lap("step")
                values |= account.report(done, phase)
                writer.write(done, values)
                screen.metrics(done, _summary(values))
            profiler.after(step, metrics)
            preempted = checkpoints.reached_preemption(done)
            if not preempted and (done % config.eval_every == 0 or last):
                evaluated = _evaluate(setup, state, held_out, done)
                writer.write(done, evaluated)
                _show(screen, done, evaluated)
                account.lap("evaluation")
            if done % config.checkpoint_every == 0 or last or preempted:
                scores = {k: v for k, v in evaluated.items() if not isinstance(v, str)}
                checkpoints.save(done, state, _with_best(scores, config.best_metric))
                account.lap("checkpoint")
            if preempted:
                screen.line(f"this machine is being taken away: saved step {done}, stopping")
                break


def _with_best(scores: dict, best_metric: str) -> dict | None:
    """Scores to store with a checkpoint; None before the first evaluation."""
    if best_metric and scores and best_metric not in scores:
        raise UserError(
            f"train.best_metric = {best_metric!r} is not evaluated; "
            + did_you_mean(best_metric, scores)
        )
    return scores or None


def _summary(values: dict) -> str:
    losses = [f"{name} {values[f'loss/{name}']:.3f}" for name in LOSSES if f"loss/{name}" in values]
    skipped = f"  skipped {values['skipped']:.0f}" if values["skipped"] else ""
    busy = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
    return (
        f"loss {values['loss']:.3f}  {'  '.join(losses)}  grad {values['grad_norm']:.2f}  "
        f"{values['tokens_per_second']:,.0f} tokens/s{busy}{skipped}"
    )


def _evaluate(setup: Setup, state: TrainState, held_out: list[dict], step: int) -> dict:
    experiment, recipe, prepared = setup.experiment, setup.recipe, setup.prepared
    writer = Writer.of(
        recipe.models, recipe.diffusion, state, prepared.tokenizer,
        prepared.stats["lengths"], setup.founded.weights,
    )  # fmt: skip
    context = EvalContext(
        writer, recipe, held_out, experiment.sample, _LOOP_SAMPLES, _LOOP_STEP_COUNTS,
        experiment.train.seed, prepared,
    )  # fmt: skip
    # A phase that has not trained the denoiser yet has nothing to say about it.
    trained = phase_at(experiment.phases, step - 1)
    names = [
        name
        for name in experiment.train.evals
        if name == "reconstruction" or trained.has("diffusion")
    ]
    return run_evals(tuple(names), context)


def _show(screen: Screen, step: int, results: dict) -> None:
    shown = ("reconstruction/accuracy_noise_0", "reconstruction/accuracy_noise_1",
             "denoising/error_mean", "denoising/accuracy_mean")  # fmt: skip
    numbers = "  ".join(f"{name} {results[name]:.3f}" for name in shown if name in results)
    screen.line(f"evaluation at step {step}: {numbers}")
    for name, text in results.items():
        if isinstance(text, str):
            screen.line(f"{name}:\n{text}")
