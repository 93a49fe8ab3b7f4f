"""Time generation in blocks and one token after another: seconds and memory by length and batch.

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

from experiments.baselines.sampling import write_left_to_right
from experiments.baselines.token_transformer import TokenTransformer
from ldlm_jax.config import load_config, resolve
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import row_params
from ldlm_jax.sampling.spec import ConditioningBatch, Spec

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
    """An untrained model with blocks. Its texts may not end; what they say does not matter."""

    def __init__(self, config: str):
        self.experiment = resolve(load_config(config))
        self.networks = self.experiment.networks(VOCABULARY)
        self.window = self.experiment.data.window
        self.params = meta.unbox(self.networks.init(jax.random.key(0), self.window))
        self.latents = LatentStats.create(self.networks.vae.latent_channels)

    def run(self, batch: int, length: int, steps: int, block_size: int = 0) -> dict:
        """Generate ``batch`` texts of ``length`` tokens as the config samples.

        The cache holds one window. With ``block_size`` the blocks are of that size.
        """
        config = replace(self.experiment.sample, steps=steps, block_size=block_size)
        spec = Spec.of(self.networks, self.experiment.diffusion, [config], self.window)
        tokens_per_latent = self.networks.vae.tokens_per_latent
        given = ConditioningBatch.blank(batch, length, tokens_per_latent, endless=True)
        rows = row_params(jax.random.split(jax.random.key(0), batch), [config] * batch)
        arguments = self.params, self.latents, given, rows
        return measured(generate_tokens.jitted().lower(*arguments, spec=spec), *arguments)

    def cache_bytes(self, batch: int, length: int) -> int:
        """Keys and values of one window, by formula (fp32 on a CPU)."""
        dit = self.networks.dit
        return 2 * dit.layers * batch * min(length, self.window) * dit.width * 4


class Autoregressive:
    """The autoregressive baseline, as wide and deep as the DiT. It caches the whole text."""

    def __init__(self, latent: Latent):
        dit = latent.networks.dit
        self.model = TokenTransformer(VOCABULARY, dit.width, dit.heads, dit.layers, dtype=dit.dtype,
                                      offset_radius=dit.offset_radius)  # fmt: skip
        tokens = jnp.zeros((1, 8), jnp.int32)
        self.params = meta.unbox(self.model.init(jax.random.key(0), tokens, token_layout(tokens)))

    def run(self, batch: int, length: int) -> dict:
        """Generate ``batch`` texts of ``length`` tokens with top-p 0.95."""
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
                blocks = latent.run(batch, length, steps, block_size)
                blocks["cache_bytes"] = latent.cache_bytes(batch, length)
                blocks["times_as_fast"] = row["autoregressive"]["seconds"] / blocks["seconds"]
                row[f"latent_{steps}"] = blocks
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
