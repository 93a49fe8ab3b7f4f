"""Time a step with each teacher, run in the step or read from a cache, in turns.

Command: PYTHONPATH=. python experiments/alignment/cost.py experiments/alignment/cost.json
         (README.md says what comes first; a missing cache is written before the timing)
"""

import json
import sys
import time
from pathlib import Path

from experiments.compare import config_of
from experiments.steps import FusedSteps
from ldlm_jax.config import resolve

ROUNDS, STEPS = 3, 10
# Each is an arm, and further overrides.
VARIANTS = {
    "none": ("none",),
    "SmolLM2-135M, in the step": ("SmolLM2-135M", "teacher.cached=False"),
    "SmolLM2-135M, cached": ("SmolLM2-135M",),
    "MiniLM-L6, in the step": ("MiniLM-L6",),
}


def seconds(steps: FusedSteps) -> float:
    """Mean seconds of a few steps, the reading of their batches included."""
    start = time.perf_counter()
    for _ in range(STEPS):
        steps.step()
    return (time.perf_counter() - start) / STEPS


def main(out: str) -> None:
    """Measure both phases, print and write."""
    timed = {
        (name, phase): FusedSteps(resolve(config_of("alignment", arm, *more)), phase)
        for name, (arm, *more) in VARIANTS.items()
        for phase in (0, 1)
    }
    best: dict = {}
    for turn in range(ROUNDS + 1):  # the first compiles
        for name, variant in timed.items():
            elapsed = seconds(variant)
            if turn:
                best[name] = min(best.get(name, elapsed), elapsed)
    print("| teacher | language model | of that without | whole step | of that without |")
    print("|---|---|---|---|---|")
    for name in VARIANTS:
        cells = [
            f"{best[name, phase]:.3f} | {best[name, phase] / best['none', phase]:.2f}"
            for phase in (0, 1)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    by_name = {name: [best[name, phase] for phase in (0, 1)] for name in VARIANTS}
    facts = {"rounds": ROUNDS, "steps": STEPS, "seconds_by_phase": by_name}
    Path(out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
