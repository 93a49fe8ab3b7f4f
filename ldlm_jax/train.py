"""The loop, top to bottom: restore, data, step, log, evaluate, save, stop."""

import contextlib
import logging
from pathlib import Path

import jax

from ldlm_jax.accounting import Account, Profiler
from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import resolve
from ldlm_jax.config_checks import check_mesh
from ldlm_jax.data.build import prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.evals import REGISTRY, EvalContext, run_evals
from ldlm_jax.generate import Writer
from ldlm_jax.guide import load_guide
from ldlm_jax.mesh import make_mesh
from ldlm_jax.metrics import MetricsWriter, Screen
from ldlm_jax.optim import make_optimizer
from ldlm_jax.phases import phase_at
from ldlm_jax.processes import first_alone, is_first
from ldlm_jax.run_folder import RunFolder
from ldlm_jax.sharding import batch_sharding, in_force, own_rows, put_batch
from ldlm_jax.teachers.foundation import load_foundation
from ldlm_jax.train_state import abstract_state, init_state
from ldlm_jax.train_step import Frozen, Recipe, compiled_step

log = logging.getLogger(__name__)

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
    mesh = make_mesh(experiment.mesh)
    sharding = batch_sharding(mesh, experiment.sharding)
    check_mesh(experiment, mesh)
    prepared = first_alone("data", lambda: prepare(experiment.data))
    guide = load_guide(experiment, prepared, mesh)
    teacher_width = guide.width if guide else 0

    founded = load_foundation(experiment.foundation, mesh, experiment.sharding)
    folder = RunFolder(Path(workdir))
    facts = {
        "lengths": prepared.stats["lengths"],
        "teacher": experiment.teacher.model or experiment.teacher.run,
        "teacher_width": teacher_width,
        "foundation": founded.fingerprint,
    }
    first_alone("folder", lambda: folder.start(config, prepared.tokenizer, facts))
    models = experiment.models(prepared.tokenizer.vocab_size, teacher_width, founded.foundation)
    recipe = experiment.recipe(models, guide.teacher if guide else None)
    with in_force(mesh, experiment.sharding):
        _run(experiment, recipe, prepared, folder, mesh, sharding, guide, founded.weights)


def _restore_or_create(experiment, recipe: Recipe, optimizer, checkpoints: Checkpoints, mesh):
    window, rules = experiment.data.window, experiment.sharding
    abstract = abstract_state(recipe.models, optimizer, window, mesh, rules)
    state = checkpoints.restore(abstract)
    if state is None:
        return init_state(recipe.models, optimizer, experiment.train.seed, window, mesh, rules)
    checkpoints.discard_after(int(state.step))
    return state


def _run(experiment, recipe, prepared, folder, mesh, sharding, guide, foundation) -> None:
    config = experiment.train
    optimizer = make_optimizer(experiment.optim, config.num_steps)
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        best_metric=config.best_metric,
    )
    state = _restore_or_create(experiment, recipe, optimizer, checkpoints, mesh)
    start = int(state.step)
    step_fn = compiled_step(recipe, optimizer)
    key = jax.random.key(config.seed)
    frozen = Frozen(guide.params if guide else None, foundation)
    batches, held_out = _batches(experiment, prepared, sharding, guide, start)
    silent = not is_first()
    writer, screen = MetricsWriter(folder.path, silent), Screen(config.num_steps, start, silent)
    account = Account(experiment, recipe, start)
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
            batch = put_batch(next(batches), sharding)
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
                evaluated = _evaluate(
                    experiment, recipe, state, foundation, held_out, prepared, done
                )
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


def _batches(experiment, prepared, sharding, guide, start: int):
    """Training batches from a step on, and the held-out ones, which are already on the mesh."""
    config = experiment.train
    beside = {"add": guide.add, "cache": guide.cache} if guide else {}
    rows = own_rows(sharding, config.batch_size)
    batches = train_batches(prepared, experiment.data, config.batch_size, start, rows, **beside)
    held_out = eval_batches(prepared, "validation", config.batch_size, config.eval_batches, rows)
    return batches, [put_batch(batch, sharding) for batch in held_out]


def _with_best(scores: dict, best_metric: str) -> dict | None:
    """Scores to store with a checkpoint; None before the first evaluation."""
    if best_metric and scores and best_metric not in scores:
        raise UserError(
            f"train.best_metric = {best_metric!r} is not evaluated; "
            + did_you_mean(best_metric, scores)
        )
    return scores or None


def _summary(values: dict) -> str:
    names = {"reconstruction": "rec", "kl": "kl", "diffusion": "diff", "alignment": "align",
             "consistency": "cons"}  # fmt: skip
    losses = [
        f"{short} {values[f'loss/{name}']:.3f}"
        for name, short in names.items()
        if f"loss/{name}" in values
    ]
    skipped = f"  skipped {values['skipped']:.0f}" if values["skipped"] else ""
    busy = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
    return (
        f"loss {values['loss']:.3f}  {'  '.join(losses)}  grad {values['grad_norm']:.2f}  "
        f"{values['tokens_per_second']:,.0f} tokens/s{busy}{skipped}"
    )


def _evaluate(experiment, recipe, state, foundation, held_out, prepared, step) -> dict:
    writer = Writer.of(
        recipe.models, recipe.diffusion, state, prepared.tokenizer,
        prepared.stats["lengths"], foundation,
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
