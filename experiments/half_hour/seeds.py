"""How much the measures of free texts move from one sampling seed to the next.

Command: PYTHONPATH=. python experiments/half_hour/seeds.py LATENT_RUN AR_RUN OUT.json SEED ...
         (1,000 texts for each seed and system: the latent model in blocks of one with one step
         each, and the autoregressive one, both with top-p 0.95, plain and guided by context;
         at least two seeds; those of an earlier run with the same OUT.json are kept)
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.half_hour.baseline import Baseline
from ldlm_jax.allocator import keep_freed_memory
from ldlm_jax.evals.quality import Examiner, headline
from ldlm_jax.generate import generate
from ldlm_jax.run_folder import load_run

COUNT, TOP_P, GUIDANCE = 1000, 0.95, 1.3
MEASURES = ("perplexity", "token_entropy", "mauve", "distinct_2", "loop_rate", "words")


def main(latent: str, ar: str, out: str, *seeds: str) -> None:
    """Write, judge, store and print."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    examiner = Examiner(baseline.prepared, "smollm2-135m", "validation", run.writer.window, COUNT)
    plain = replace(
        run.experiment.sample, steps=1, solver="ancestral", block_size=1, lag=0.0, top_p=TOP_P,
        batch_size=100,
    )  # fmt: skip
    guided = replace(plain, context_guidance=GUIDANCE)

    def ours(config):
        return lambda seed: [s.text for s in generate(run.writer, config, seed, num_samples=COUNT)]

    def theirs(guidance):
        return lambda seed: baseline.write([""] * COUNT, seed, top_p=TOP_P, guidance=guidance)

    systems = {
        "latent": ours(plain),
        "autoregressive": theirs(1.0),
        "latent, guided": ours(guided),
        "autoregressive, guided": theirs(GUIDANCE),
    }
    file, rows = Path(out), {}
    if file.is_file():
        rows = json.loads(file.read_text())["rows"]
    for seed in seeds:
        for name, write in systems.items():
            measured = examiner.measure(write(int(seed)))
            print(f"{name}, seed {seed}: {headline(measured)}", flush=True)
            rows.setdefault(name, {})[seed] = {key: measured[key] for key in MEASURES}
            file.write_text(json.dumps({"texts": COUNT, "rows": rows}, indent=1) + "\n")
    print("| texts | seeds | " + " | ".join(MEASURES) + " |\n|" + "---|" * (len(MEASURES) + 2))
    for name, by_seed in rows.items():
        columns = [[row[key] for row in by_seed.values()] for key in MEASURES]
        cells = (f"{np.mean(x):.3f} ± {np.std(x, ddof=1):.3f}" for x in columns)
        print(f"| {name} | {len(by_seed)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
