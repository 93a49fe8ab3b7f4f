"""Texts of one model by several samplers, at 8, 20 and 100 steps.

Command: PYTHONPATH=. python experiments/whole_text/samplers.py RUN OUT_FOLDER [TEXTS]
Then ``judge.py`` scores the files. ``cut`` takes the first N - 1 steps of a grid of 8 N, and then
what the model would write (MGDM's early stop); the package has no such option.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import ldlm_jax.sampling.spec as spec
from ldlm_jax.diffusion.time_grid import quantile_grid
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate
from ldlm_jax.serving.hub import open_model

FRESH = {"churn": 1000.0}  # all noise is fresh at every step
ROWS = {
    "euler": {"solver": "euler"},
    "stochastic": {},
    "fresh": FRESH,
    "fresh_stopped": FRESH | {"stable_steps": 2},
    "ancestral": {"solver": "ancestral"},
    "ancestral_stopped": {"solver": "ancestral", "stable_steps": 2},
    "ancestral_top_p": {"solver": "ancestral", "top_p": 0.9},
}


def cut_grid(steps, most=None):
    """The first steps of a grid eight times as fine, and then the end."""
    fine = quantile_grid(8 * steps, 8 * (most or steps))
    return jnp.concatenate([fine[: most or steps], fine[-1:]])


def main(run: str, out: str, count: str = "300") -> None:
    """Write a file of texts for each row and number of steps."""
    model, folder = open_model(run), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {f"{name}_{steps}": (steps, options) for name, options in ROWS.items()
            for steps in (8, 20, 100) if "stopped" not in name or steps == 100}  # fmt: skip
    rows |= {f"cut_{steps}": (steps, ROWS["ancestral"]) for steps in (8, 20)}
    for name, (steps, options) in rows.items():
        spec.quantile_grid = cut_grid if name.startswith("cut") else quantile_grid
        jax.clear_caches()  # the grid is no argument of the compiled call
        config, start = SampleConfig(steps=steps, batch_size=100, **options), time.monotonic()
        with model.use_sharding():
            samples = list(generate(model.generator, config, 1, num_samples=int(count)))
        with (folder / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": sample.text}) + "\n" for sample in samples)
        spent = sum(sample.evaluations for sample in samples) / len(samples)
        print(
            f"{name}: {spent:.1f} evaluations a text, {time.monotonic() - start:.0f} s", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
