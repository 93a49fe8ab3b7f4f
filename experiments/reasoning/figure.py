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
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    colors = dict(zip(sorted({system for system, _ in solved}), plt.cm.tab10.colors, strict=False))
    for (system, level), by_steps in sorted(solved.items()):
        if level not in (first, "hard"):
            continue
        steps = sorted(by_steps)
        means = [100 * np.mean(by_steps[s]) for s in steps]
        look = {"color": colors[system], "label": f"{system}, {level}",
                "linestyle": "--" if level == "hard" else "-"}  # fmt: skip
        if steps == [0]:
            axes.axhline(means[0], **look)
        elif system.endswith("early"):
            filled = "none" if level == "hard" else colors[system]
            axes.plot(steps, means, "*", markersize=14, markerfacecolor=filled, **look)
        else:
            axes.plot(steps, means, "o", **look)
    axes.set(xscale="log", xlabel="denoising steps (stopped early: their mean)",
             ylabel="puzzles solved, %", ylim=(0, 104))  # fmt: skip
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
