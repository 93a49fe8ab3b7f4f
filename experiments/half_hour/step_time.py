"""Time a step of each system in turns, so that half an hour is the same for all.

Command: PYTHONPATH=. python experiments/half_hour/step_time.py CONFIG OUT.json [key=value ...]
"""

import json
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import jax

from experiments.baselines.training import KINDS, Training
from experiments.steps import FusedSteps
from ldlm_jax.config import load_config, resolve

TURNS, STEPS = 5, 10
BASELINES = {"ar": ["layers=4", "dropout=0.2"], "mdlm": ["layers=4"]}


class Plain:
    """The step of a baseline."""

    def __init__(self, kind: str, overrides: tuple[str, ...] = ()):
        self.training = Training.create(KINDS[kind], 1000, [*BASELINES[kind], *overrides])
        self.state, self.batches = self.training.state, self.training.batches()

    def step(self) -> None:
        """Take one, to its end."""
        self.state, loss = self.training.step_fn(self.state, next(self.batches), 0)
        jax.block_until_ready(loss)


def main(config: str, out: str, *overrides: str) -> None:
    """Measure, print and write."""
    systems = {kind: Plain(kind) for kind in BASELINES}
    experiment = resolve(load_config(config, overrides))
    if experiment.aligned:
        systems["ar, aligned"] = Plain("ar", (f"config={config}", *overrides))
    for number in range(len(experiment.phases)):
        systems[f"latent, phase {number}"] = FusedSteps(experiment, number)
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
        "config": [config, *overrides],
        "date": str(date.today()),
        "steps": TURNS * STEPS,
        "median_seconds": medians,
        "to_ar": {name: value / medians["ar"] for name, value in medians.items()},
    }
    print(json.dumps(record, indent=1))
    Path(out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
