"""Real processes that train together, are taken away, and go on in other numbers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ldlm_jax.errors import TRY_AGAIN, UserError
from ldlm_jax.parallel.distributed import Processes, join, rendezvous

DEVICES = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """``ldlm train`` in some processes that have four devices together."""
    port, started = free_port(), []
    for index in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // processes)
        }  # fmt: skip
        flags = [f"--coordinator=localhost:{port}", f"--num-processes={processes}",
                 f"--process-id={index}"] if processes > 1 else []  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "ldlm_jax.cli", "train", *flags, *arguments],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    return started


def run(arguments: list[str], processes: int) -> str:
    """Let them finish; what the first one said."""
    outputs = [process.communicate(timeout=600)[0] for process in start(arguments, processes)]
    return outputs[0]


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    """Arguments of a short run on four devices that are split in both ways."""
    root = tmp_path_factory.mktemp("prepared")
    return [
        "--config", "configs/debug.py", f"data.source={corpus}", f"data.root={root}",
        "mesh.data=2", "mesh.fsdp=2", "train.num_steps=6", "train.checkpoint_every=3",
        "train.log_every=1", "train.eval_every=6", "train.batch_size=8",
        "phases=[{'encoder_gradient': 1.0}]",
    ]  # fmt: skip


# Three trainings in turn, each compiled by each of its processes: minutes on a busy machine.
@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_four_processes_and_then_two_are_as_good_as_one(base, tmp_path):
    """The same losses, evaluation with samples included; and a checkpoint fits any number."""
    one, several = tmp_path / "one", tmp_path / "several"
    run([*base, f"--workdir={one}", "train.evals=()"], 1)
    said = run([*base, f"--workdir={several}", "train.num_steps=3", "train.evals=()"], 4)
    assert "4 x cpu" in said, said
    said = run(
        [*base, f"--workdir={several}", "train.evals=('samples',)", "train.eval_steps=(2,)"], 2
    )
    assert "resuming" in said and "at step 3" in said, said
    expected, actual = losses(one), losses(several)
    assert sorted(actual) == sorted(expected) == [1, 2, 3, 4, 5, 6]
    # The sums over devices run in another order; nothing else differs.
    np.testing.assert_allclose([actual[i] for i in range(1, 7)],
                               [expected[i] for i in range(1, 7)], rtol=2e-4)  # fmt: skip
    lines = (several / "metrics.jsonl").read_text()
    assert "samples/" in lines


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_told_to_stop_saves_first(base, tmp_path, number):
    (process,) = start([*base, f"--workdir={tmp_path}", "train.num_steps=100000",
                        "train.checkpoint_every=100000", "train.eval_every=100000"], 1)  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "told to stop: saved step" in said, said
    saved = [int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1 and f"saved step {saved[0]}" in said
    assert ("interrupted" in said) == (number == signal.SIGINT)


def test_the_roll_names_who_is_missing():
    """Everybody who is there learns who is not."""
    address, errors = f"localhost:{free_port()}", {}

    def report(index):
        try:
            rendezvous(Processes(address, 4, index, timeout=3))
        except UserError as error:
            errors[index] = str(error)

    threads = [threading.Thread(target=report, args=(i,)) for i in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("process 1, 3 of 4 did not join within 3 s" in errors[i] for i in (0, 2)), errors


def test_nobody_answers():
    with pytest.raises(UserError, match="process 0 of 2 did not join within 1 s"):
        rendezvous(Processes(f"localhost:{free_port()}", 2, 1, timeout=1))


def test_all_present():
    address, done = f"localhost:{free_port()}", []

    def report(index):
        rendezvous(Processes(address, 3, index, timeout=20))
        done.append(index)

    threads = [threading.Thread(target=report, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        (Processes("host:1", None, 0), "belong together"),
        (Processes("host:1", 2, 2), "numbers run from 0"),
        (Processes("host", 2, 0), "write host:port"),
    ],
)
def test_impossible_flags(processes, said):
    with pytest.raises(UserError, match=said):
        join(processes)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_who_outlives_another_process_ends_soon_in_one_line(base, tmp_path, killed):
    """The others would wait for minutes, and end with the stack of the runtime."""
    arguments = [*base, f"--workdir={tmp_path}", "train.num_steps=100000", "mesh.data=4",
                 "mesh.fsdp=1", "train.checkpoint_every=100000",
                 "train.eval_every=100000"]  # fmt: skip
    processes = start(arguments, 4)
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 2:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.2)
    processes.pop(killed).kill()
    began = time.monotonic()
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == TRY_AGAIN, said
        assert f"error: process {killed} of 4 is gone" in said and "***" not in said, said
    assert time.monotonic() - began < 20
