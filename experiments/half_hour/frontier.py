"""Free texts of the latent and the autoregressive model over seeds, top-p and guidance.

Command: PYTHONPATH=. python experiments/half_hour/frontier.py LATENT_RUN AR_RUN OUT.json \
           SEED:TOP_P:GUIDANCE ...
         (1,000 texts of each model for every setting, the latent one's in blocks of one with one
         step each; what OUT.json holds already is kept)
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.half_hour.baseline import Baseline
from ldlm_jax.allocator import keep_freed_memory
from ldlm_jax.evals.quality import Examiner, headline
from ldlm_jax.generate import generate
from ldlm_jax.run_folder import LoadedRun, load_run

COUNT = 1000
MEASURES = ("perplexity", "token_entropy", "mauve", "distinct_2", "loop_rate", "words")


def writers(run: LoadedRun, baseline: Baseline) -> dict[str, Callable]:
    """By model: from seed, top-p and weight of guidance by context to texts."""
    in_ones = replace(
        run.experiment.sample, steps=1, solver="ancestral", block_size=1, lag=0.0, batch_size=100
    )

    def ours(seed: int, top_p: float, guidance: float) -> list[str]:
        config = replace(in_ones, top_p=top_p, context_guidance=guidance)
        return [s.text for s in generate(run.writer, config, seed, num_samples=COUNT)]

    def theirs(seed: int, top_p: float, guidance: float) -> list[str]:
        return baseline.write([""] * COUNT, seed, top_p=top_p, guidance=guidance)

    return {"latent": ours, "autoregressive": theirs}


def main(latent: str, ar: str, out: str, *settings: str) -> None:
    """Write, judge, store and print."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    window = run.writer.window
    examiner = Examiner(baseline.prepared, "smollm2-135m", "validation", window, COUNT)
    models, file = writers(run, baseline), Path(out)
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for setting in settings:
        seed, top_p, guidance = setting.split(":")
        for name, write in models.items():
            measured = examiner.measure(write(int(seed), float(top_p), float(guidance)))
            print(f"{name}, {setting}: {headline(measured)}", flush=True)
            row = {"model": name, "seed": seed, "top_p": top_p, "guidance": guidance}
            rows.append(row | {key: measured[key] for key in MEASURES})
            file.write_text(json.dumps({"texts": COUNT, "rows": rows}, indent=1) + "\n")
    table(rows)


def table(rows: list[dict]) -> None:
    """Print means over the seeds of each setting, and MAUVE of each seed."""
    print(f"| model, top-p, guidance | {' | '.join(MEASURES)} | MAUVE by seed |")
    print("|---" * (len(MEASURES) + 2) + "|")
    by_setting: dict = {}
    for row in rows:
        by_setting.setdefault((row["model"], row["top_p"], row["guidance"]), []).append(row)
    for names, of_seeds in sorted(by_setting.items()):
        cells = [f"{np.mean([row[key] for row in of_seeds]):.3f}" for key in MEASURES]
        single = ", ".join(f"{row['mauve']:.3f}" for row in of_seeds)
        print(f"| {', '.join(names)} | {' | '.join(cells)} | {single} |")


if __name__ == "__main__":
    keep_freed_memory()
    main(*sys.argv[1:])
