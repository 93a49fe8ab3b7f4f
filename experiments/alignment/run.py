"""Train one arm from one seed, and judge what it writes.

Command: PYTHONPATH=. python experiments/alignment/run.py ARM SEED OUT.json [section.key=value ...]
Trains in runs/alignment/ (an arm that is there already is only judged) and adds a row to OUT.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from experiments.alignment.arms import config_of
from ldlm_jax.config import resolve
from ldlm_jax.data.build import prepare
from ldlm_jax.evals.midpoints import decode_midpoints
from ldlm_jax.evals.quality import Examiner, beginnings
from ldlm_jax.generate import answer, generate
from ldlm_jax.request import Request
from ldlm_jax.run_folder import load_run
from ldlm_jax.train import train

COUNT, JUDGE = 500, "smollm2-135m"


def judged(workdir: Path) -> dict:
    """Measures of free texts, of continuations of a half, and of midpoints (iMAUVE)."""
    run = load_run(workdir)
    prepared = prepare(run.experiment.data)
    examiner = Examiner(prepared, JUDGE, "validation", run.writer.window, COUNT)
    config = replace(run.experiment.sample, batch_size=100)
    free = [s.text for s in generate(run.writer, config, 0, num_samples=COUNT)]
    requests = [
        Request(prompt, 0, number, config)
        for number, prompt in enumerate(beginnings(examiner.held_out, 0.5))
    ]
    continued = [s.text for s in answer(run.writer, requests)]
    _, midpoints = decode_midpoints(run.writer, examiner.held_out)
    return {
        "free": examiner.measure(free),
        "half given": examiner.measure(continued),
        "midpoints": examiner.measure(midpoints),
    }


def main(arm: str, seed: str, out: str, *overrides: str) -> None:
    """Train, judge and store."""
    config = config_of(arm, f"train.seed={seed}", *overrides)
    workdir = Path("runs/alignment") / f"{arm.replace(' ', '_').replace(',', '')}_{seed}"
    resolve(config)
    if not (workdir / "checkpoints").is_dir():
        train(config, str(workdir))
    logged = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    kept = ("reconstruction/", "denoising/", "alignment")
    row = {key: value for key, value in logged.items() if key.startswith(kept)}
    row |= judged(workdir)
    print(json.dumps(row, indent=1))
    file = Path(out)
    rows = json.loads(file.read_text()) if file.is_file() else {}
    rows.setdefault(arm, {})[seed] = row
    file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
