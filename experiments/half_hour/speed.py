"""Time trained systems in turns: texts a second, one at once and 32 at once.

Command: PYTHONPATH=. python experiments/half_hour/speed.py LATENT_RUN AR_RUN MDLM_RUN OUT.json
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from experiments.baselines.sampling import Baseline
from ldlm_jax.sampling.generate import generate
from ldlm_jax.workdir import load_run

BATCHES, TURNS = (1, 32), 3


def main(latent: str, ar: str, mdlm: str, out: str) -> None:
    """Measure, print and write."""
    run = load_run(latent)
    ar, mdlm = Baseline.load("ar", ar), Baseline.load("mdlm", mdlm)

    def latent_texts(steps: int, **changes):
        return lambda count: list(generate(
            run.generator, replace(run.experiment.sample, steps=steps, batch_size=count, **changes),
            0, num_samples=count,
        ))  # fmt: skip

    systems = {
        "autoregressive, top-p 0.95": lambda n: ar.write([""] * n, 0, batch=n, top_p=0.95),
        "masked, 64 steps": lambda n: mdlm.write([""] * n, 0, batch=n, steps=64),
        "latent, blocks of one, 1 step": latent_texts(1, block_size=1, time_offset=0.0, top_p=0.95),
        **{f"latent, blocks of four, {steps} steps": latent_texts(steps) for steps in (5, 20, 100)},
    }
    seconds: dict = {name: {str(n): [] for n in BATCHES} for name in systems}
    for turn in range(TURNS + 1):  # the first compiles
        for name, write in systems.items():
            for count in BATCHES:
                start = time.perf_counter()
                write(count)
                if turn:
                    seconds[name][str(count)].append(time.perf_counter() - start)
    rates = {
        name: {count: int(count) / min(times) for count, times in by_batch.items()}
        for name, by_batch in seconds.items()
    }
    Path(out).write_text(json.dumps({"texts_per_second": rates, "turns": TURNS}, indent=1) + "\n")
    print("| system | texts a second, one at once | 32 at once |\n|---|---|---|")
    for name, by_batch in rates.items():
        print(f"| {name} | " + " | ".join(f"{rate:.2f}" for rate in by_batch.values()) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
