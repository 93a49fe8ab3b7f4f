"""Kill a training at random moments, start it again, and compare it with one that nobody disturbed.

The real program in its own process, its data included: a kill may fall into the preparation of the
corpus, compiling, a step, an evaluation or a save. Losses and the final parameters must be the
same, bit for bit.

Command: PYTHONPATH=. python experiments/reliability/kill.py KILLS SEED OUT.json
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

STEPS = 24


def command(folder: Path, name: str, text: Path) -> list[str]:
    """``ldlm train`` of a tiny model in a folder, its data beside it."""
    return [
        sys.executable, "-m", "ldlm_jax.cli", "train", "--config", "configs/debug.py",
        "--workdir", str(folder / name), f"data.source={text}", f"data.root={folder / name}-data",
        f"train.num_steps={STEPS}", "train.checkpoint_every=3", "train.log_every=1",
        "train.eval_every=8", "train.evals=('reconstruction',)", "train.batch_size=8",
        "phases=[{'encoder_gradient': 1.0}]",
    ]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    """The program, on one device of the CPU."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(arguments: list[str]) -> float:
    """Let it run to its end; seconds that it took."""
    began, process = time.monotonic(), start(arguments)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(said[-4000:])
    return time.monotonic() - began


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Step and loss of every line that was logged, in the order of the file."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint."""
    folder = max((workdir / "checkpoints").iterdir(), key=lambda f: int(f.name)) / "default"
    tree = ocp.PyTreeCheckpointer().restore(folder)
    flat, _ = ocp.utils.jax.tree_util.tree_flatten_with_path(tree)
    return {str(path): np.asarray(value) for path, value in flat}


def kill_and_compare(folder: Path, kills: int, seed: int, report=print) -> dict:
    """Kill ``kills`` times within the time that a whole training takes; what was seen."""
    text, rng = folder / "text.txt", random.Random(seed)
    text.write_text("\n\n".join(f"The number {i} has {len(str(i))} digits." for i in range(400)))
    finish(command(folder, "whole", text))
    # Again without compiling and with nothing kept but that: how long there is for a kill.
    seconds = finish(command(folder, "second", text))
    resumed, name, finished = [], "killed", 0
    while len(resumed) < kills:
        process = start(command(folder, name, text))
        try:
            said, _ = process.communicate(timeout=rng.uniform(0.0, seconds))
            if process.returncode:
                raise RuntimeError(said[-4000:])
            finished += 1  # it was faster than the kill: begin anew, in another folder
            check(folder, name)
            name = f"killed_{finished}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            checkpoints = folder / name / "checkpoints"
            steps = [int(f.name) for f in checkpoints.glob("[0-9]*") if f.name.isdigit()]
            resumed.append(max(steps, default=0))
            report(f"kill {len(resumed)}: newest checkpoint {resumed[-1]}")
    finish(command(folder, name, text))
    check(folder, name)
    return {"kills": kills, "seed": seed, "seconds": round(seconds, 1), "resumed_from": resumed,
            "finished_before_the_kill": finished}  # fmt: skip


def check(folder: Path, name: str) -> None:
    """Raise AssertionError unless the losses and the state of a run are those of the whole one."""
    assert losses(folder / name) == losses(folder / "whole")
    one, other = final_state(folder / "whole"), final_state(folder / name)
    assert one.keys() == other.keys() and len(one) > 20
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        seen = kill_and_compare(Path(folder), int(sys.argv[1]), int(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(seen, indent=1) + "\n")
    print(json.dumps(seen))
