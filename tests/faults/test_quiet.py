"""A damaged checkpoint is told in one line, whatever the threads say that were reading it."""

import os
import subprocess
import sys
from types import SimpleNamespace

from ldlm_jax.checkpoint import _quiet_about_closed_loops

# Files of the newer of two checkpoints are gone; many of its parts are being read at that moment.
READS = """
import logging, sys, threading
from pathlib import Path
import jax, jax.numpy as jnp
from ldlm_jax.checkpoint import Checkpoints

logging.basicConfig(level=logging.WARNING)
logging.getLogger("absl").setLevel(logging.ERROR)
folder, names = Path(sys.argv[1]), [f"w{i}" for i in range(200)]
shape = jax.ShapeDtypeStruct(
    (64, 64), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
)
checkpoints = Checkpoints(folder, keep_last=2)
for step in (1, 2):
    keys = jax.random.split(jax.random.key(step), len(names))
    checkpoints.save(step, {n: jax.random.normal(k, (64, 64)) for n, k in zip(names, keys)})
checkpoints.close()
for file in (folder / "2").rglob("d/*"):
    if file.stat().st_size > 2000:
        file.unlink()
checkpoints = Checkpoints(folder)
checkpoints.restore(dict.fromkeys(names, shape))
checkpoints.close()

def breaks():
    raise RuntimeError("something else")

thread = threading.Thread(target=breaks)
thread.start()
thread.join()
"""


def test_reads_that_nobody_waits_for_say_nothing(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "checkpoints")], capture_output=True,
        text=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    assert "checkpoint of step 2 cannot be read" in said.stderr
    assert "Event loop" not in said.stderr
    assert "something else" in said.stderr  # all other errors are shown


def test_that_a_loop_is_closed_is_left_out_and_nothing_else(monkeypatch):
    """The same at will: whether reads are under way at the first failure is a matter of luck."""
    shown = []
    for name in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(sys, name, lambda *arguments: shown.append(arguments))
    _quiet_about_closed_loops()
    _quiet_about_closed_loops()  # at every restore
    for error in (RuntimeError("Event loop is closed"), RuntimeError("x"), ValueError("y")):
        sys.excepthook(type(error), error, None)
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert len(shown) == 4 and "closed" not in str(shown)
