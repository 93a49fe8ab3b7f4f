"""Seconds a step of each system, in turns within one run, so that half an hour is the same for all.

Command: PYTHONPATH=. python experiments/half_hour/step_time.py configs/web_cpu_30min.py OUT.json
"""

import json
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import jax

from experiments.half_hour.baseline import KINDS, Training
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.build import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.mesh import make_mesh
from ldlm_jax.optim import make_optimizer
from ldlm_jax.sharding import batch_sharding, put_batch
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import compiled_step

TURNS, STEPS = 5, 10
BASELINES = {"ar": ["layers=4", "dropout=0.2"], "mdlm": ["layers=4"]}


class Latent:
    """The fused step of a phase. A new state each: what a step was given is used up."""

    def __init__(self, config: str, number: int):
        experiment = resolve(load_config(config))
        prepared = prepare(experiment.data)
        models = experiment.models(prepared.tokenizer.vocab_size)
        optimizer = make_optimizer(experiment.optim, experiment.train.num_steps)
        mesh, self.phase = make_mesh(experiment.mesh), experiment.phases[number]
        self.sharding = batch_sharding(mesh, experiment.sharding)
        window = experiment.data.window
        self.state = init_state(models, optimizer, 0, window, mesh, experiment.sharding)
        self.step_fn = compiled_step(experiment.recipe(models), optimizer)
        self.batches = train_batches(prepared, experiment.data, experiment.train.batch_size)

    def step(self) -> None:
        """Take one, to its end."""
        batch = put_batch(next(self.batches), self.sharding)
        self.state, metrics = self.step_fn(self.state, batch, jax.random.key(0), phase=self.phase)
        jax.block_until_ready(metrics)


class Plain:
    """The step of a baseline."""

    def __init__(self, kind: str):
        self.training = Training.create(KINDS[kind], 1000, BASELINES[kind])
        self.state, self.batches = self.training.state, self.training.batches()

    def step(self) -> None:
        """Take one, to its end."""
        self.state, loss = self.training.step_fn(self.state, next(self.batches), 0)
        jax.block_until_ready(loss)


def main(config: str, out: str) -> None:
    """Measure, print and write."""
    systems = {kind: Plain(kind) for kind in BASELINES}
    for number in range(len(resolve(load_config(config)).phases)):
        systems[f"latent, phase {number}"] = Latent(config, number)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(TURNS + 1):  # the first compiles
        for name, system in systems.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                system.step()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: median(times) for name, times in seconds.items()}
    record = {
        "config": config,
        "date": str(date.today()),
        "steps": TURNS * STEPS,
        "median_seconds": medians,
        "to_ar": {name: value / medians["ar"] for name, value in medians.items()},
    }
    print(json.dumps(record, indent=1))
    Path(out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
