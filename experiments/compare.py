"""Train the arms of a comparison, measure their texts, and print the table.

Command: export PYTHONPATH=.
         python experiments/compare.py run NAME ARM SEED [DENOISING_STEPS ...]
         python experiments/compare.py table NAME
NAME is a folder of experiments/ with an arms.py, which lists the arms. ``run`` trains in runs/NAME/
and adds a row to experiments/NAME/results.json. An arm that is trained already is only measured.
"""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from ldlm_jax.config import load_config
from ldlm_jax.data.dataset import prepare
from ldlm_jax.evals.quality import QualityEvaluator
from ldlm_jax.sampling.generate import generate
from ldlm_jax.train import train
from ldlm_jax.workdir import load_run

COUNT = 500
# Columns of a table: the measure, how it is written, and what it is called.
MEASURES = (
    ("mauve", "{:.3f}", "MAUVE"), ("perplexity", "{:.0f}", "perplexity"),
    ("token_entropy", "{:.2f}", "token entropy"), ("distinct_2", "{:.3f}", "distinct-2"),
    ("loop_rate", "{:.3f}", "loop rate"),
)  # fmt: skip


def results_of(name: str) -> Path:
    """Where the rows of a comparison are kept."""
    return Path("experiments") / name / "results.json"


def arms_of(name: str):
    """The arms.py of a comparison."""
    return import_module(f"experiments.{name}.arms")


def workdir_of(name: str, arm: str, seed: str) -> Path:
    """Where an arm is trained."""
    return Path("runs") / name / f"{arm}_{seed}".replace(" ", "_").replace(",", "")


def short(config: str, steps: int) -> list[str]:
    """Overrides for a run of few steps, evaluated and saved at its end, with phases as short."""
    whole = load_config(config)
    ends = [round(phase["until"] * steps / whole.train.num_steps) for phase in whole.phases[:-1]]
    return [
        *(f"phases.{number}.until={end}" for number, end in enumerate(ends)),
        f"train.num_steps={steps}", f"train.eval_every={steps}", f"train.checkpoint_every={steps}",
        "train.eval_batches=16", "train.evals=('reconstruction','denoising')",
    ]  # fmt: skip


def last_logged(workdir: Path) -> dict:
    """The last value of everything that a run has logged."""
    logged = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    return logged


def config_of(name: str, arm: str, *overrides: str):
    """The config of an arm."""
    arms = arms_of(name)
    return load_config(arms.CONFIG, [*short(arms.CONFIG, arms.STEPS), *arms.ARMS[arm], *overrides])


def measured(workdir: Path, scorer: str, step_counts: tuple[int, ...]) -> dict[str, dict]:
    """Measures of free texts at each number of steps."""
    run = load_run(workdir)
    prepared = prepare(run.experiment.data)
    evaluator = QualityEvaluator(prepared, scorer, "validation", run.generator.window, COUNT)
    rows = {}
    for steps in step_counts:
        config = replace(run.experiment.sample, steps=steps, batch_size=100)
        samples = generate(run.generator, config, 0, num_samples=COUNT)
        rows[f"free, {steps} steps"] = evaluator.measure([s.text for s in samples])
    return rows


def run_arm(name: str, arm: str, seed: str, *steps: str) -> None:
    """Train and measure one arm from one seed, and store its row."""
    arms = arms_of(name)
    step_counts = tuple(map(int, steps)) or arms.STEP_COUNTS
    workdir = workdir_of(name, arm, seed)
    if not (workdir / "checkpoints").is_dir():
        train(config_of(name, arm, f"train.seed={seed}"), str(workdir))
    kept = ("reconstruction/", "denoising/", "alignment", "loss/")
    row: dict = {key: value for key, value in last_logged(workdir).items() if key.startswith(kept)}
    row["texts"] = measured(workdir, arms.SCORER, step_counts)
    file = results_of(name)
    rows = json.loads(file.read_text()) if file.is_file() else {}
    rows.setdefault(arm, {})[seed] = row
    file.write_text(json.dumps(rows, indent=1) + "\n")


def print_means(head: str, named: dict[str, list[dict]]) -> None:
    """Print one line for each name: means of its measured sets, and MAUVE of each."""
    titles = " | ".join(title for *_, title in MEASURES)
    print(f"| {head} | seeds | {titles} | MAUVE by seed |\n|{'---|' * (len(MEASURES) + 3)}")
    for name, sets in named.items():
        mean = {key: np.mean([row[key] for row in sets]) for key, *_ in MEASURES}
        cells = " | ".join(form.format(mean[key]) for key, form, _ in MEASURES)
        single = ", ".join(f"{row['mauve']:.3f}" for row in sets)
        print(f"| {name} | {len(sets)} | {cells} | {single} |")


def table(name: str) -> None:
    """Print one line for each arm and kind of text."""
    named: dict[str, list[dict]] = {}
    for arm, by_seed in json.loads(results_of(name).read_text()).items():
        for row in by_seed.values():
            for kind, measures in row["texts"].items():
                named.setdefault(f"{arm}, {kind}", []).append(measures)
    print_means("arm", named)


if __name__ == "__main__":
    {"run": run_arm, "table": table}[sys.argv[1]](*sys.argv[2:])
