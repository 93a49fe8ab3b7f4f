"""Solve the same held-out puzzles with one trained model and many samplers.

Command: PYTHONPATH=. python experiments/reasoning/samplers.py checkpoints/sudoku6 \
           experiments/reasoning/samplers.json [COUNT]
Settings that the file holds already are not measured again.
"""

import json
import sys
from itertools import product
from pathlib import Path

import jax
import numpy as np

from ldlm_jax import load
from ldlm_jax.sampling.puzzles import held_out, requests_of, task_of

LEVELS = ("12 given", "hard")
# Settings, and numbers of steps.
SETTINGS = {
    "solver=euler": (20,), "churn=0.3": (20,), "churn=1": (20,), "churn=2": (20,),
    "churn=4": (5, 20, 50, 100), "churn=8": (20, 100), "churn=16": (20, 100),
    "churn=1000": (5, 20, 100), "solver=ancestral churn=1": (20,),
    "solver=ancestral churn=4": (20,), "churn=1000 temperature=0.5": (5, 10, 20, 100),
    "churn=1000 temperature=0.2": (5, 20), "churn=1000 temperature=0.05": (5, 20),
    "churn=1000 self_condition_guidance=1.5": (5, 10),
    "churn=1000 temperature=0.5 self_condition_guidance=1.5": (5,),
    "churn=1000 temperature=0.5 guidance=1.5": (5, 10),
    "churn=1000 temperature=0.5 guidance=3": (5, 10),
    "churn=1000 temperature=0.5 stable_steps=2": (100,),
}  # fmt: skip


def options_of(setting: str) -> dict:
    """``"a=1 b=x"`` as keyword arguments."""
    pairs = (pair.split("=") for pair in setting.split())
    return {k: v if v[0].isalpha() else json.loads(v) for k, v in pairs}


def main(model_path: str, out: str, count: str = "300") -> None:
    """Measure what is missing."""
    model, file = load(model_path), Path(out)
    rows = json.loads(file.read_text()) if file.exists() else {}
    data = model.run.experiment.data
    task = task_of(data.source)
    for setting, level in product(SETTINGS, LEVELS):
        options = options_of(setting)
        puzzles = held_out(data, "test", level, int(count), 0)
        for steps in SETTINGS[setting]:
            if (name := f"{setting}, {steps} steps, {level}") in rows:
                continue
            config = model.options(steps=steps, batch_size=int(count), **options)
            samples = model.requests(requests_of(puzzles, config, 0))
            right = [task.solved(p, s.text) for p, s in zip(puzzles, samples, strict=True)]
            rows[name] = {"solved": float(np.mean(right)), "count": len(right)}
            if "stable_steps" in options:
                spent = np.array([s.evaluations for s in samples])
                rows[name] |= {"evaluations": float(spent.mean()), "most": int(spent.max())}
            print(name, rows[name], flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
