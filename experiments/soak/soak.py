"""Train for long, with evaluation, sampling and checkpoints, and see that nothing grows.

The real program, watched from a thread of its own process: resident memory, threads, open files
and compilations, with the step they were seen at. After a quarter of the run all must be flat.

Command: PYTHONPATH=. python experiments/soak/soak.py STEPS SECONDS OUT.json
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from ldlm_jax.cli import main

# What may differ between the second quarter of a run and its last: memory in MB, threads, files.
ALLOWED = {"memory_mb": 40.0, "threads": 3, "files": 8, "compilations": 0}
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Watch:
    """Samples of this process, taken every few seconds by a thread."""

    def __init__(self, metrics: Path, seconds: float, stop_after: float):
        self._metrics, self._seconds, self._stop_after = metrics, seconds, stop_after
        self.samples, self.compilations = [], 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        threading.Thread(target=self._run, daemon=True).start()

    def _count(self, event: str, *_, **__) -> None:
        self.compilations += event == _COMPILED

    def _run(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < self._stop_after:
            time.sleep(self._seconds)
            self.samples.append(self._sample())
        os.kill(os.getpid(), signal.SIGTERM)  # the loop saves, and ends

    def _sample(self) -> dict:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "step": last_step(self._metrics),
            "memory_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
            "threads": len(os.listdir("/proc/self/task")),
            "files": len(os.listdir("/proc/self/fd")),
            "compilations": self.compilations,
        }


def last_step(metrics: Path) -> int:
    """The last step that was logged."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as lines:
        lines.seek(max(0, metrics.stat().st_size - 1_000_000))
        whole = [line for line in lines.read().splitlines(keepends=True) if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def growth(samples: list[dict]) -> dict[str, float]:
    """By how much the median of the last quarter of the steps exceeds that of the second.

    In the first, all is compiled: the step, and at the first evaluation what that needs.
    """
    steps = samples[-1]["step"]
    second = [s for s in samples if steps / 4 < s["step"] <= steps / 2]
    last = [s for s in samples if s["step"] > 3 * steps / 4]
    return {
        name: float(np.median([s[name] for s in last]) - np.median([s[name] for s in second]))
        for name in ALLOWED
    }


def soak(folder: Path, steps: int, seconds: float, every: float = 5.0) -> dict:
    """Train in a folder; what was seen, and whether it was flat."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"The number {i} has {len(str(i))} digits." for i in range(400)))
    watch = Watch(folder / "run" / "metrics.jsonl", every, seconds)
    code = main([
        "train", "--config", "configs/debug.py", "--workdir", str(folder / "run"),
        f"data.source={text}", f"data.root={folder}", f"train.num_steps={steps}",
        "train.log_every=20", "train.eval_every=100", "train.checkpoint_every=100",
        "train.evals=('reconstruction', 'denoising', 'samples')", "train.eval_samples=4",
        "train.eval_steps=(2, 4)", "phases=[{'encoder_gradient': 1.0}]",
    ])  # fmt: skip
    grown = growth(watch.samples)
    return {
        "steps": last_step(folder / "run" / "metrics.jsonl"), "exit_code": code, "growth": grown,
        "allowed": ALLOWED, "flat": all(grown[name] <= ALLOWED[name] for name in ALLOWED),
        "samples": watch.samples,
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        seen = soak(Path(place), int(sys.argv[1]), float(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(seen, indent=1) + "\n")
    print({name: value for name, value in seen.items() if name != "samples"})
    sys.exit(not seen["flat"] or seen["exit_code"])
