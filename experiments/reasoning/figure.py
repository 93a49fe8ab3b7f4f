"""Accuracy against denoising steps, the baselines as lines; and the table.

Command: PYTHONPATH=. python experiments/reasoning/figure.py experiments/reasoning/results OUT.png
The folder holds ``latent*.json`` and, stopped early, ``early*.json`` (ldlm eval --evals puzzles
--json), and ``ar*``, ``ar_order*`` and ``mdlm*.json`` (baselines.py solve); several of one kind are
seeds. Rows that stopped early stand at their mean number of evaluations.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

NAMES = {"ar": "autoregressive", "ar_order": "autoregressive, told the order",
         "mdlm": "masked diffusion, by margin"}  # fmt: skip


def read(folder: Path) -> dict[tuple[str, str], dict[float, list[float]]]:
    """Share solved by (system, level) and number of steps, one value a seed; steps 0: has none."""
    solved: dict = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        results = record["results"]
        for name, value in results.items():
            if found := re.fullmatch(r"puzzles/solved_(.+)_steps_(\d+)", name):
                spent = results.get(name.replace("solved", "evaluations"))
                system = "latent diffusion, stopped early" if spent else "latent diffusion"
                steps = round(spent, 1) if spent else int(found[2])
                solved[system, found[1].replace("_", " ")][steps].append(value)
            elif "kind" in record:
                level, _, steps = name.partition(", ")
                steps = int(steps.split()[0]) if steps else 0
                solved[NAMES[record["kind"]], level][steps].append(value["solved"])
    return solved


def main(folder: str, out: str) -> None:
    """Print the table and draw the figure of the first level, and of hard puzzles."""
    solved = read(Path(folder))
    print("| system | puzzles | steps | solved | seeds |\n|---|---|---|---|---|")
    for (system, level), by_steps in solved.items():
        for steps, values in sorted(by_steps.items()):
            spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
            print(f"| {system} | {level} | {steps or '-'} | {np.mean(values):.3f}{spread} | "
                  f"{len(values)} |")  # fmt: skip
    first = next(level for system, level in solved if level.endswith("given"))
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for (system, level), by_steps in solved.items():
        if level not in (first, "hard"):
            continue
        steps = sorted(by_steps)
        means = [100 * np.mean(by_steps[s]) for s in steps]
        if steps == [0]:
            axes.axhline(means[0], linestyle="--", color="gray")
            axes.text(1, means[0] + 1.5, system, color="gray", fontsize=9)
        else:
            style = "*" if system.endswith("early") else "o-"
            size = 13 if style == "*" else 6
            axes.plot(steps, means, style, markersize=size, label=f"{system}, {level}")
    axes.set(
        xscale="log",
        xlabel="denoising steps (stopped early: their mean)",
        ylabel="puzzles solved, %",
        ylim=(0, 102),
    )
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
