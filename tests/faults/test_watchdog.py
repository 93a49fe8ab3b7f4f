"""A run that hangs ends by itself; a supervised one is started again."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ldlm_jax.errors import TRY_AGAIN

# The real loop, whose input stops after two batches, but only once.
STALLS_ONCE = """
import pathlib, sys, time
from ldlm_jax import cli, train
true, mark = train.TrainingRun.batches, pathlib.Path(sys.argv[1])
def batches(self, start=0):
    for i, batch in enumerate(true(self, start)):
        if i == 4 and not mark.exists():
            mark.touch()
            time.sleep(600)
        yield batch
train.TrainingRun.batches = batches
sys.exit(cli.main(sys.argv[2:]))
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=580,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    )  # fmt: skip


def test_a_watchdog_prints_all_stacks_and_ends_the_process():
    said = run(
        "import time\nfrom ldlm_jax.telemetry.watchdog import Watchdog\n"
        "dog = Watchdog(0.8)\n"
        "for _ in range(4): time.sleep(0.4); dog.alive()\n"
        "def waits_for_ever(): time.sleep(60)\n"
        "print('alive', flush=True); waits_for_ever()"
    )
    assert said.returncode == TRY_AGAIN
    assert said.stdout == "alive\n"  # signs of life count
    assert "train.stall_timeout" in said.stderr and "in waits_for_ever" in said.stderr
    closed = "dog = Watchdog(0.3); dog.close(); time.sleep(1)"
    said = run(f"import time\nfrom ldlm_jax.telemetry.watchdog import Watchdog\n{closed}")
    assert said.returncode == 0 and not said.stderr


@pytest.mark.slow
def test_a_run_without_input_ends_and_goes_on_where_it_was(corpus, tmp_path):
    arguments = [
        str(tmp_path / "mark"), "train", "--config", "configs/debug.py",
        f"data.source={corpus}", f"data.root={tmp_path}", "--workdir", str(tmp_path / "run"),
        "train.num_steps=6", "train.checkpoint_every=2", "train.log_every=1",
        "train.eval_every=100", "train.evals=()", "train.stall_timeout=150",
    ]  # fmt: skip
    first = run(STALLS_ONCE, *arguments)
    assert first.returncode == TRY_AGAIN, first.stderr[-2000:]
    assert "in batches" in first.stderr
    second = run(STALLS_ONCE, *arguments)
    assert second.returncode == 0 and "resuming" in second.stdout, second.stderr[-2000:]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_supervised_command_is_started_again_and_errors_of_users_are_final(tmp_path, monkeypatch):
    from ldlm_jax import cli
    from ldlm_jax.telemetry import watchdog

    counter = tmp_path / "count"
    counter.write_text("")
    program = tmp_path / "program.py"
    # It fails twice, once by a signal, and then ends well.
    program.write_text(
        "import os, pathlib, sys\n"
        f"count = pathlib.Path({str(counter)!r})\n"
        "count.write_text(count.read_text() + 'x')\n"
        "tries = len(count.read_text())\n"
        "if tries == 1: os.kill(os.getpid(), 9)\n"
        "sys.exit({2: 75, 3: 0}[tries])\n"
    )
    true_popen = subprocess.Popen
    monkeypatch.setattr(
        watchdog.subprocess, "Popen", lambda command: true_popen([sys.executable, str(program)])
    )
    train = ["train", "--config", "configs/debug.py", "--workdir", str(tmp_path)]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main([*train, "--max-restarts", "5"]) == 0
    assert counter.read_text() == "xxx"
    counter.write_text("")
    assert cli.main([*train, "--max-restarts", "1"]) == TRY_AGAIN
    assert counter.read_text() == "xx"
    counter.write_text("")
    program.write_text(f"import sys\nopen({str(counter)!r}, 'a').write('x')\nsys.exit(2)\n")
    assert cli.main([*train, "--max-restarts", "5"]) == 2
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert counter.read_text() == "x"


def test_a_lone_process_waits_for_no_sign_of_itself(monkeypatch):
    """Suspended for minutes, or starved, it would else be ended by its own service."""
    import jax

    from ldlm_jax.parallel.distributed import Processes, join

    asked = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *at, **options: asked.append((at, options))
    )
    join(Processes("localhost:1234", 1, 0))

    def no_cluster(*at, **options):
        if not at:
            raise ValueError("coordinator_address should be defined.")
        asked.append((at, options))

    monkeypatch.setattr(jax.distributed, "initialize", no_cluster)
    join(Processes())
    assert [at[1:] for at, _ in asked] == [(1, 0), (1, 0)]
    assert all(options["heartbeat_timeout_seconds"] > 10**7 for _, options in asked)
