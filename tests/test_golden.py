"""Losses, gradient norms and texts that a change of names or rooms must leave as they are.

``WRITE_GOLDEN=1 pytest tests/test_golden.py`` writes them anew: only where a change is meant.
"""

import json
import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.optimizer import make_optimizer
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.generator import Generator
from ldlm_jax.sampling.request import Request
from ldlm_jax.train_state import init_state
from ldlm_jax.train_step import train_step
from tests.conftest import DEMO, nowhere_zero

FILE = Path(__file__).with_name("golden.json")
STEPS, WIDTH = 2, 6
ALIGNED = (
    "{'alignment': 4.0, 'next_token': 1.0, 'token': 1.0, 'reconstruction': 0.0, "
    "'encoder_gradient': 1.0}"
)

# What differs from configs/debug.py, and how texts are generated.
CASES = {
    "debug": ((), {"steps": 4, "guidance": 2.0}),
    "demo": (
        (*DEMO, "diffusion.suffix=0.1", "diffusion.per_token_times=0.5",
         "diffusion.self_condition=0.0"),
        {"steps": 3, "solver": "ancestral", "top_p": 0.8, "time_offset": 3.0,
         "context_guidance": 1.3},
    ),
    "whole": (
        ("phases.1.token=0.5", "text_vae.encoder_layers=2", "dit.time_tokens=0",
         "dit.conditioning=adaln", "diffusion.random_spans=0.2", "autoencoding.token_mask=0.5"),
        {"steps": 6, "solver": "euler", "self_condition_guidance": 1.5},
    ),
    "aligned": (
        (*DEMO[:-1], "teacher.model=smollm2-135m", "alignment.site=clean_pass",
         "alignment.block=2", f"phases=[{ALIGNED}]"),
        {"steps": 2, "block_size": 1},
    ),
}  # fmt: skip


def requests(how: dict) -> list[Request]:
    """A free text, a continuation, and a span to fill."""
    config = SampleConfig(**how)
    asked = [Request("", 0, 0, config), Request("My son", 1, 1, config)]
    return [*asked, Request(template="The ____{3} blessed the people.", seed=2, config=config)]


def outcome(overrides, changes, how) -> dict:
    """Metrics of a few steps of each phase, and the texts that are then generated."""
    experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
    prepared = prepare(experiment.data)
    width = WIDTH if experiment.aligned else 0
    networks = experiment.networks(prepared.tokenizer.vocab_size, width)
    recipe, optimizer = experiment.recipe(networks), make_optimizer(experiment.optim, 100)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    state = init_state(networks, optimizer, 0, experiment.data.window, mesh, AxisRules())
    params = nowhere_zero(state.params, 0.05)
    state = state.replace(params=params, ema=params)
    batch = next(train_batches(prepared, experiment.data, 8))
    if experiment.aligned:
        shape = (8, experiment.data.window, WIDTH)
        batch["teacher"] = np.asarray(jax.random.normal(jax.random.key(5), shape))
    rows = []
    for phase in experiment.phases:
        step = jax.jit(partial(train_step, phase=phase, recipe=recipe, optimizer=optimizer))
        for _ in range(STEPS):
            state, metrics = step(state, batch, jax.random.key(1))
            rows.append({k: float(v) for k, v in metrics.items() if "loss" in k or "norm" in k})
    generator = Generator(
        networks, experiment.diffusion, state.ema, state.latents, prepared.tokenizer,
        tuple(prepared.stats["lengths"]),
    )  # fmt: skip
    tokens = [sample.tokens for sample in generate_requests(generator, requests(how))]
    return {"steps": rows, "tokens": tokens}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nothing_has_moved(overrides, name):
    found = outcome(overrides, *CASES[name])
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("WRITE_GOLDEN"):
        FILE.write_text(json.dumps(known | {name: found}, indent=1) + "\n")
        return
    for row, expected in zip(found["steps"], known[name]["steps"], strict=True):
        assert row == pytest.approx(expected, rel=2e-4)
    assert found["tokens"] == known[name]["tokens"]
