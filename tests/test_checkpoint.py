"""Which checkpoints stay, and what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.checkpoint import Checkpoints, _checksum
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


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path, caplog, monkeypatch):
    """What the reader gives back is not what was saved; no decoder of the file complains."""
    kept = save(tmp_path, [1.0, 2.0], keep_last=2)
    manager = kept._manager
    true_restore = manager.restore

    def restore(step, args):
        read = true_restore(step, args=args)
        if step == 2:
            bits = jax.lax.bitcast_convert_type(read["w"], jnp.uint32)
            bits = bits.at[3].set(bits[3] ^ np.uint32(1 << 31))
            read["w"] = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return read

    monkeypatch.setattr(manager, "restore", restore)
    assert float(kept.restore(abstract())["w"][0]) == 1.0
    assert "step 2 cannot be read (['w'] is not what was saved" in caplog.text
    with pytest.raises(UserError, match="no checkpoint can be read"):
        kept.restore(abstract(), 2)
    kept.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_every_single_bit_counts(dtype):
    rng, shape = np.random.default_rng(0), (3, 5)
    x = jnp.asarray(rng.normal(size=shape) > 0 if dtype == "bool" else rng.normal(size=shape) * 9,
                    dtype)  # fmt: skip
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((5,), ("x",), devices=jax.devices()[:5]), jax.P(None, "x")
    )
    plain, whole = int(_checksum(x)), np.asarray(x)
    assert int(_checksum(jax.device_put(x, sharding))) == plain
    raw = whole.tobytes()
    for bit in range(0, 8 * len(raw), 8 if dtype == "bool" else 1):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(changed, whole.dtype).reshape(shape)
        assert int(_checksum(jnp.asarray(other))) != plain, bit


def test_a_folder_that_is_no_checkpoint_does_not_hide_the_others(tmp_path, caplog):
    """An empty step, and one of which half the files were copied."""
    save(tmp_path, [1.0, 2.0, 3.0], keep_last=3).close()
    (tmp_path / "7").mkdir()
    shutil.copytree(tmp_path / "3", tmp_path / "5")
    for file in sorted((tmp_path / "5").rglob("*"))[::2]:
        if file.is_file():
            file.unlink()
    kept = Checkpoints(tmp_path)
    assert float(kept.restore(abstract())["w"][0]) == 3.0
    assert "step 5" in caplog.text
    kept.set_aside_after(3)
    assert kept.steps()[-1] == 3
    kept.close()
