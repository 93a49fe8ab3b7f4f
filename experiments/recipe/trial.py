"""Train a variant of the demo and judge its text.

Command: PYTHONPATH=. python experiments/recipe/trial.py NAME [section.key=value ...]
Writes experiments/recipe/trials/NAME.json. Seconds are those of training steps alone.
"""

import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from experiments.recipe.ngram import Judge
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.build import prepare
from ldlm_jax.data.pipeline import eval_batches, train_batches
from ldlm_jax.evals import EvalContext, run_evals
from ldlm_jax.generate import Writer, generate
from ldlm_jax.mesh import make_mesh
from ldlm_jax.optim import make_optimizer
from ldlm_jax.phases import phase_at
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import train_step


def train_all(experiment, prepared, models):
    """The trained state, and seconds spent in steps."""
    optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
    mesh = make_mesh(experiment.mesh)
    state = init_state(models, optimizer, 0, experiment.data.window, mesh, experiment.sharding)
    step_fn = jax.jit(
        partial(train_step, recipe=experiment.recipe(models), optimizer=optimizer),
        donate_argnums=0,
        static_argnames="phase",
    )
    batches = train_batches(prepared, experiment.data, experiment.train.batch_size)
    used, compiled = 0.0, set()
    for step in range(experiment.train.num_steps):
        phase = phase_at(experiment.phases, step)
        start = time.perf_counter()
        state, metrics = step_fn(state, next(batches), jax.random.key(0), phase=phase)
        jax.block_until_ready(metrics)
        if phase in compiled:
            used += time.perf_counter() - start
        compiled.add(phase)
        if (step + 1) % 50 == 0:
            print(step + 1, f"{used:.0f} s", f"loss {float(metrics['loss']):.3f}", flush=True)
    return state, used


def main(name: str, *overrides: str) -> None:
    """Run one trial."""
    experiment = resolve(load_config("configs/web_cpu.py", list(overrides)))
    prepared = prepare(experiment.data)
    models = experiment.models(prepared.tokenizer.vocab_size)
    state, seconds = train_all(experiment, prepared, models)
    writer = Writer.of(
        models, experiment.diffusion, state, prepared.tokenizer,
        prepared.stats["lengths"],
    )  # fmt: skip
    base = replace(experiment.sample, batch_size=64)
    held_out = eval_batches(prepared, "validation", 64, 4)
    context = EvalContext(writer, experiment.recipe(models), held_out, base, 8, (5,), 0)
    result = {"name": name, "overrides": overrides, "seconds": round(seconds)}
    result |= run_evals(("reconstruction", "denoising"), context)
    judge = Judge()
    for steps in (5, 20):
        texts = [s.text for s in generate(writer, replace(base, steps=steps), 1, num_samples=256)]
        result[f"steps {steps}"] = judge(texts) | {"texts": texts[:10]}
    text = json.dumps(result, indent=1)
    print(text)
    folder = Path("experiments/recipe/trials")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
