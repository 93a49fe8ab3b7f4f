"""What a step costs with each teacher, run in the step or read from a cache, in turns.

Command: PYTHONPATH=. python experiments/alignment/cost.py experiments/alignment/cost.json
Features are cached for a part of the corpus: a step costs the same, and writing them takes less.
"""

import json
import sys
import time
from itertools import islice
from pathlib import Path

from experiments.alignment.arms import ARMS
from experiments.compare import config_of
from experiments.steps import FusedSteps
from ldlm_jax.allocator import keep_freed_memory
from ldlm_jax.config import resolve
from ldlm_jax.data.build import prepare, read_texts

ROUNDS, STEPS, DOCUMENTS = 3, 5, 3000


def seconds(steps: FusedSteps) -> float:
    """Mean of a few, the next batch's reading included."""
    start = time.perf_counter()
    for _ in range(STEPS):
        steps.step()
    return (time.perf_counter() - start) / STEPS


def last_phase(arm: str, *overrides: str) -> FusedSteps:
    """The steps that align."""
    return FusedSteps(resolve(config_of("alignment", arm, *overrides)), -1)


def main(out: str) -> None:
    """Measure, print and write."""
    whole = prepare(resolve(config_of("alignment", "none")).data)
    part = Path("runs/alignment/part.txt")
    part.write_text("\n\n".join(islice(read_texts(whole.text, "train"), DOCUMENTS)))
    timed = {}
    for arm, overrides in ARMS.items():
        timed[arm] = last_phase(arm)
        if any("teacher.model" in override for override in overrides):
            cached = (
                "teacher.cached=True",
                f"data.source={part}",
                "data.root=runs/alignment/corpora",
            )
            timed[f"{arm}, cached"] = last_phase(arm, *cached)
    best: dict[str, float] = {}
    for turn in range(ROUNDS + 1):  # the first compiles
        for name, variant in timed.items():
            took = seconds(variant)
            if turn:
                best[name] = min(best.get(name, took), took)
    print("| teacher | seconds a step | of that without |\n|---|---|---|")
    for name, took in best.items():
        print(f"| {name} | {took:.3f} | {took / best['none']:.2f} |")
    facts = {"rounds": ROUNDS, "steps": STEPS, "seconds": best}
    Path(out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
