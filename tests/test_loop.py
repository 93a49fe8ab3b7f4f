"""The training loop waits for nothing but its devices."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax import train as loop
from ldlm_jax.config import load_config
from ldlm_jax.telemetry import metrics as telemetry

SECONDS, STEPS, LOG_EVERY = 0.01, 120, 20


@pytest.mark.slow
def test_at_ten_milliseconds_a_step_the_loop_waits_for_steps_alone(
    overrides, tmp_path, monkeypatch
):
    """A step that takes its time elsewhere, as on an accelerator; metrics are fetched for the log
    alone, together, and after the step that follows has begun."""
    began, fetched = [], []

    def compiled_step(recipe, optimizer):
        def step(state, batch, key, frozen, phase):
            assert all(isinstance(x, jax.Array) for x in batch.values())
            time.sleep(SECONDS)
            began.append(len(began) + 1)
            number = jnp.float32(len(began))
            return state.replace(step=state.step + 1), {
                "loss": number, "loss/diffusion": number, "grad_norm": number,
                "skipped": jnp.int32(0),
            }  # fmt: skip

        return step

    get = jax.device_get

    def device_get(tree):
        if isinstance(tree, dict) and "loss" in tree:
            fetched.append((int(tree["loss"]), len(began)))
        return get(tree)

    monkeypatch.setattr(loop, "compiled_step", compiled_step)
    monkeypatch.setattr(telemetry.jax, "device_get", device_get)
    run = [*overrides, f"train.num_steps={STEPS}", f"train.log_every={LOG_EVERY}",
           "train.eval_every=1000", "train.checkpoint_every=1000", "train.evals=()"]  # fmt: skip
    loop.train(load_config("configs/debug.py", run), str(tmp_path / "run"))
    logged = [1, *range(LOG_EVERY, STEPS + 1, LOG_EVERY)]
    assert [step for step, _ in fetched] == logged
    assert all(later == step + 1 for step, later in fetched[:-1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    lines = [line for line in lines if "loss" in line][2:]  # the first hold the count of operations
    assert [line["loss"] for line in lines] == logged[2:]
    outside = [
        1 - line["seconds/step"] / sum(v for k, v in line.items() if k.startswith("seconds/"))
        for line in lines
    ]
    assert np.median(outside) < 0.2, outside  # also where all cores are busy
    assert np.median([line["input_share"] for line in lines]) < 0.2
    print(f"outside steps: {outside}")
