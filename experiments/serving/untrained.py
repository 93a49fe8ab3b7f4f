"""An untrained run of the demo's size: for load, where only the cost of a text counts.

    python -m experiments.serving.untrained runs/untrained

Its texts rarely end, so that each fills the window: the most that a text can cost.
"""

import sys
from pathlib import Path

import jax
from flax.core import meta

from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.train_state import AveragedModel
from ldlm_jax.workdir import Workdir

CONFIG = ["data.source=CHANGELOG.md", "data.vocab_size=1024", "text_vae.dtype=float32",
          "dit.dtype=float32"]  # fmt: skip


def main(folder: str) -> None:
    """Write the run."""
    config = load_config("configs/web_cpu.py", CONFIG)
    experiment = resolve(config)
    prepared = prepare(experiment.data)
    networks = experiment.networks(prepared.tokenizer.vocab_size)
    window = experiment.data.window
    params = jax.jit(lambda: meta.unbox(networks.init(jax.random.key(0), window)))()
    workdir = Workdir(Path(folder))
    facts = {"lengths": prepared.stats["lengths"], "teacher": "", "backbone": ""}
    workdir.start(config, prepared.tokenizer, facts)
    checkpoints = Checkpoints(workdir.checkpoints)
    stats = LatentStats.create(networks.vae.latent_channels)
    checkpoints.save(0, AveragedModel(jax.numpy.int32(0), params, stats))
    checkpoints.close()


if __name__ == "__main__":
    main(sys.argv[1])
