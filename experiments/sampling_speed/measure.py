"""Blocks out of noise against one token after another: seconds and memory by length and batch.

Command: PYTHONPATH=. python experiments/sampling_speed/measure.py configs/web_cpu.py \
           experiments/sampling_speed/results.json
"""

import json
import platform
import sys
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from flax.core import meta

from experiments.half_hour.baseline import write_left_to_right
from ldlm_jax.config import load_config, resolve
from ldlm_jax.models.autoregressive import TokenTransformer
from ldlm_jax.models.token_layout import lay_out
from ldlm_jax.sampling.blockwise import write_tokens
from ldlm_jax.sampling.spec import Dials, Page, Plan
from ldlm_jax.train_state import LatentStats

VOCABULARY = 4096
LENGTHS, BATCHES = (64, 256, 1024, 2048), (1, 32)
LONG = 20.0


def measured(lowered, *arguments, runs: int = 3) -> dict:
    """Fastest of some runs (one, if it takes long), and the compiled program's temporary memory."""
    compiled = lowered.compile()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        if seconds[-1] > LONG:
            break
    memory = compiled.memory_analysis().temp_size_in_bytes
    return {"seconds": min(seconds), "temporary_bytes": memory}


class Latent:
    """A model with blocks, untrained: what it writes does not matter, and no text may end."""

    def __init__(self, config: str):
        self.experiment = resolve(load_config(config))
        self.models = self.experiment.models(VOCABULARY)
        self.window = self.experiment.data.window
        self.params = meta.unbox(self.models.init(jax.random.key(0), self.window))
        self.latents = LatentStats.create(self.models.vae.latent_channels)

    def run(self, batch: int, length: int, steps: int, block_size: int = 0) -> dict:
        """Write ``batch`` texts of ``length`` tokens as the config samples, remembering one window.

        In smaller blocks if so asked.
        """
        config = replace(self.experiment.sample, steps=steps, block_size=block_size)
        plan = Plan.of(self.models, self.experiment.diffusion, config, self.window)
        page = Page.blank(batch, length, 1, endless=True)
        dials = Dials.of(jax.random.split(jax.random.key(0), batch), [config] * batch)
        arguments = self.params, self.latents, page, dials
        return measured(write_tokens.lower(*arguments, plan=plan), *arguments)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Keys and values of one window, by formula (fp32 on a CPU)."""
        dit = self.models.dit
        return 2 * dit.layers * batch * min(length, self.window) * dit.width * 4


class Autoregressive:
    """The baseline with the DiT's width and depth, with its cache of the whole text."""

    def __init__(self, latent: Latent):
        dit = latent.models.dit
        self.model = TokenTransformer(VOCABULARY, dit.width, dit.heads, dit.layers, dtype=dit.dtype,
                                      offset_radius=dit.offset_radius)  # fmt: skip
        tokens = jnp.zeros((1, 8), jnp.int32)
        self.params = meta.unbox(self.model.init(jax.random.key(0), tokens, lay_out(tokens)))

    def run(self, batch: int, length: int) -> dict:
        """Write ``batch`` texts of ``length`` tokens with top-p 0.95."""
        arguments = (
            self.params["params"], jnp.zeros((batch, length), jnp.int32),
            jnp.zeros(batch, jnp.int32), jax.random.key(0),
        )  # fmt: skip
        write = jax.jit(partial(write_left_to_right, self.model, top_p=0.95, temperature=1.0))
        return measured(write.lower(*arguments), *arguments)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Keys and values of all tokens."""
        return 2 * self.model.layers * batch * length * self.model.width * 4


def count(params) -> int:
    """Parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def main(config: str, out: str) -> None:
    """Measure, print and write; a plot of memory beside."""
    latent = Latent(config)
    left_to_right = Autoregressive(latent)
    rows: list[dict] = []
    result = {
        "config": config, "date": date.today().isoformat(), "jax": jax.__version__,
        "hardware": f"{jax.device_count()} x {jax.default_backend()}, {platform.machine()}",
        "parameters": {"latent": count(latent.params), "ar": count(left_to_right.params)},
        "rows": rows,
    }  # fmt: skip
    for batch in BATCHES:
        for length in LENGTHS:
            row = {"batch": batch, "length": length,
                   "autoregressive": left_to_right.run(batch, length)
                   | {"cache_bytes": left_to_right.cache_bytes(batch, length)}}  # fmt: skip
            few = (5, 0), (1, 1)
            for steps, block_size in few if batch * length > 32 * 1024 else (*few, (20, 0)):
                own = latent.run(batch, length, steps, block_size)
                own["cache_bytes"] = latent.cache_bytes(batch, length)
                own["times_as_fast"] = row["autoregressive"]["seconds"] / own["seconds"]
                row[f"latent_{steps}"] = own
            rows.append(row)
            print(json.dumps(row), flush=True)
            Path(out).write_text(json.dumps(result, indent=1) + "\n")
    result["seconds_by_steps"] = {s: latent.run(32, 64, s)["seconds"] for s in (25, 50, 100)}
    Path(out).write_text(json.dumps(result, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for name, label in (("autoregressive", "autoregressive"), ("latent_5", "blocks")):
        bytes_ = [row[name]["cache_bytes"] / 2**20 for row in rows if row["batch"] == 32]
        axes.plot(LENGTHS, bytes_, "o-", label=label)
    axes.set(xscale="log", xlabel="tokens", ylabel="cache, MiB (32 texts)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(Path(out).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
