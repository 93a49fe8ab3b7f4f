"""Which checkpoints stay, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

from ldlm_jax.checkpoint import Checkpoints
from ldlm_jax.errors import UserError
from ldlm_jax.train import _scores


def state(step):
    return {"w": jnp.full(4, float(step))}


def abstract():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}


def save(folder, errors, **options):
    checkpoints = Checkpoints(folder, **options)
    for step, error in enumerate(errors, 1):
        checkpoints.save(step, state(step), {"error": error})
    checkpoints.close()
    return Checkpoints(folder)


def test_the_last_the_regular_and_the_best_stay(tmp_path):
    errors = [5.0, 0.5, 4.0, 3.0, 2.0, 1.0, 1.5]
    tmp_path = tmp_path / "checkpoints"
    kept = save(tmp_path, errors, keep_last=2, keep_every=4, best_metric="error")
    assert kept.steps() == [2, 4, 6, 7]
    assert float(kept.restore(abstract())["w"][0]) == 7.0
    assert float(kept.restore(abstract(), 2)["w"][0]) == 2.0
    with pytest.raises(UserError, match="no checkpoint of step 3; there are: 2, 4, 6, 7"):
        kept.restore(abstract(), 3)
    kept.set_aside_after(4)
    assert kept.steps() == [2, 4]
    assert sorted(p.name[:2] for p in (tmp_path.parent / "unreadable").iterdir()) == ["6-", "7-"]
    kept.close()


def test_a_folder_may_have_wildcards_in_its_name(tmp_path):
    kept = save(tmp_path / "layers=[2,4]", [1.0])
    assert float(kept.restore(abstract())["w"][0]) == 1.0
    kept.close()


def test_without_more_being_asked_the_last_ones_stay(tmp_path):
    kept = save(tmp_path, [1.0, 2.0, 3.0], keep_last=2)
    assert kept.steps() == [2, 3]
    kept.close()


def test_the_best_metric_must_be_evaluated():
    assert _scores({}, "error") is None  # before the first evaluation
    assert _scores({"error": 1.0}, "error") == {"error": 1.0}
    with pytest.raises(UserError, match="did you mean 'denoising/error_mean'"):
        _scores({"denoising/error_mean": 1.0}, "denoising/eror_mean")
