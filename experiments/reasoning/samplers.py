"""Solve the same held-out puzzles with one trained model and many samplers.

Command: PYTHONPATH=. python experiments/reasoning/samplers.py checkpoints/sudoku6 \
           experiments/reasoning/results/samplers.json [COUNT]
Settings that the file holds already are not measured again.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from ldlm_jax import load
from ldlm_jax.sampling.puzzles import held_out, requests_of, task_of

LEVELS = ("12 given", "hard")
SETTINGS = (
    "solver=stochastic", "solver=euler", "solver=ancestral",
    "churn=0.3", "churn=2", "churn=4", "grid=uniform", "self_condition_guidance=1.5",
    "temperature=0.8", "solver=ancestral churn=2", "solver=ancestral grid=uniform",
    "stable_steps=2", "stable_steps=4",
)  # fmt: skip


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
    for setting in SETTINGS:
        options = options_of(setting)
        early = "stable_steps" in options
        steps = 100 if early else 20
        for level in LEVELS:
            if (name := f"{setting}, {steps} steps, {level}") in rows:
                continue
            puzzles = held_out(data, "test", level, int(count), 0)
            config = model.options(steps=steps, batch_size=int(count), **options)
            samples = model.requests(requests_of(puzzles, config, 0))
            right = [task.solved(p, s.text) for p, s in zip(puzzles, samples, strict=True)]
            rows[name] = {"solved": float(np.mean(right)), "count": len(right)}
            if early:
                spent = np.array([s.evaluations for s in samples])
                rows[name] |= {"evaluations": float(spent.mean()), "most": int(spent.max())}
            print(name, rows[name], flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
