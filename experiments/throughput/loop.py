"""Where the time of the training loop goes at about ten milliseconds a step.

Command: PYTHONPATH=. python experiments/throughput/loop.py configs/debug.py OUT.json 2000 \\
           [section.key=value ...]
"""

import json
import sys
import tempfile
from datetime import date
from pathlib import Path

import jax

from ldlm_jax.config import load_config
from ldlm_jax.train import train


def main(config: str, out: str, steps: str, *overrides: str) -> None:
    """Train without evaluations and checkpoints between, and add up what the log says."""
    run = [f"train.num_steps={steps}", "train.log_every=50", "train.eval_every=1000000",
           "train.checkpoint_every=1000000", "train.evals=()",
           "phases=[{'encoder_gradient': 1.0}]"]  # fmt: skip
    with tempfile.TemporaryDirectory() as workdir:
        train(load_config(config, [*run, *overrides]), workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").open()]
    # Without the first two, which hold compilation and the count of operations.
    lines = [line for line in lines if "loss" in line][2:]
    seconds: dict[str, float] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith("seconds/"):
                kind = name.removeprefix("seconds/")
                seconds[kind] = seconds.get(kind, 0.0) + value
    whole, count = sum(seconds.values()), lines[-1]["step"] - lines[0]["step"] + 50
    record = {"config": config, "overrides": overrides, "date": date.today().isoformat(),
              "hardware": f"{jax.device_count()} x {jax.default_backend()}",
              "ms_per_step": 1000 * whole / count, "outside_steps": 1 - seconds["step"] / whole,
              "shares": {kind: value / whole for kind, value in seconds.items()}}  # fmt: skip
    print(json.dumps(record, indent=1))
    Path(out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
