"""Count how many puzzles are solved at each number of steps, beside an autoregressive model.

Command: PYTHONPATH=. python experiments/planning/run.py runs/puzzles runs/puzzles_ar \
           experiments/planning/results.json
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.baselines.sampling import Baseline
from experiments.planning.tasks import TASKS, right
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Span
from ldlm_jax.workdir import load_run

COUNT, STEPS, OFFSETS = 200, (1, 2, 5, 10, 20, 50, 100), (0.0, 2.0)


def request(puzzle, number: int, config) -> Request:
    """The request of a puzzle: its span is as long as the solution, or ends the text."""
    before, solution, after = puzzle
    pieces = (before, Span(len(solution)), after) if after else (before, Span(open_end=True))
    return Request(number=number, config=config, revise=tuple(p for p in pieces if p))


def main(latent: str, ar: str, out: str) -> None:
    """Solve, count, print, store and plot."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    rng = random.Random(1)
    puzzles = {task: [make(rng) for _ in range(COUNT)] for task, make in TASKS.items()}
    accuracy: dict[str, dict] = {}
    for offset in OFFSETS:
        for steps in STEPS:
            config = replace(
                run.experiment.sample, steps=steps, time_offset=offset, batch_size=COUNT
            )
            row = accuracy[f"latent, time offset {offset:g}, {steps} steps"] = {}
            for task, some in puzzles.items():
                requests = [request(p, i, config) for i, p in enumerate(some)]
                samples = generate_requests(run.generator, requests)
                solved = [right(task, p, s.text) for p, s in zip(some, samples, strict=True)]
                row[task] = sum(solved) / COUNT
            print(steps, offset, row, flush=True)
    row = accuracy["autoregressive, greedy"] = {}
    for task, some in puzzles.items():
        prompts = [before for before, _, _ in some]
        texts = baseline.write(prompts, 0, batch=COUNT, temperature=1e-3)
        row[task] = sum(right(task, p, t) for p, t in zip(some, texts, strict=True)) / COUNT
    print(row)
    Path(out).write_text(json.dumps({"count": COUNT, "seed": 1, "accuracy": accuracy}, indent=1))
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for task in TASKS:
        rates = [
            accuracy[f"latent, time offset {OFFSETS[-1]:g}, {steps} steps"][task] for steps in STEPS
        ]
        axes.plot(STEPS, rates, "o-", label=task)
    axes.set(xscale="log", xlabel="steps a block", ylabel="solved", ylim=(0, 1.02))
    axes.legend()
    figure.tight_layout()
    figure.savefig(Path(out).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
