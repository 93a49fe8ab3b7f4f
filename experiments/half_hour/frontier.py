"""Measure free texts of the latent and the autoregressive model over seeds, top-p and guidance.

Command: PYTHONPATH=. python experiments/half_hour/frontier.py LATENT_RUN AR_RUN OUT.json \
           SEED:TOP_P:GUIDANCE ...
         (1,000 texts of each model for every setting; the latent model generates in blocks of one,
         with one step each; OUT.json keeps the rows that it holds already)
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.baselines.sampling import Baseline
from experiments.compare import MEASURES, print_means
from ldlm_jax.evals.quality import QualityEvaluator, headline
from ldlm_jax.sampling.generate import generate
from ldlm_jax.workdir import LoadedRun, load_run

COUNT = 1000


def writers(run: LoadedRun, baseline: Baseline) -> dict[str, Callable]:
    """A function for each model: it maps seed, top-p and weight of context guidance to texts."""
    in_ones = replace(
        run.experiment.sample,
        steps=1,
        solver="ancestral",
        block_size=1,
        time_offset=0.0,
        batch_size=100,
    )

    def latent(seed: int, top_p: float, guidance: float) -> list[str]:
        config = replace(in_ones, top_p=top_p, context_guidance=guidance)
        return [s.text for s in generate(run.generator, config, seed, num_samples=COUNT)]

    def autoregressive(seed: int, top_p: float, guidance: float) -> list[str]:
        return baseline.write([""] * COUNT, seed, top_p=top_p, guidance=guidance)

    return {"latent": latent, "autoregressive": autoregressive}


def main(latent: str, ar: str, out: str, *settings: str) -> None:
    """Generate, measure, store and print."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    window = run.generator.window
    evaluator = QualityEvaluator(baseline.prepared, "smollm2-135m", "validation", window, COUNT)
    models, file = writers(run, baseline), Path(out)
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for setting in settings:
        seed, top_p, guidance = setting.split(":")
        for name, write in models.items():
            measured = evaluator.measure(write(int(seed), float(top_p), float(guidance)))
            print(f"{name}, {setting}: {headline(measured)}", flush=True)
            row = {"model": name, "seed": seed, "top_p": top_p, "guidance": guidance}
            rows.append(row | {key: measured[key] for key, *_ in MEASURES})
            file.write_text(json.dumps({"texts": COUNT, "rows": rows}, indent=1) + "\n")
    by_setting: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["model"], row["top_p"], row["guidance"])):
        name = f"{row['model']}, {row['top_p']}, {row['guidance']}"
        by_setting.setdefault(name, []).append(row)
    print_means("model, top-p, guidance", by_setting)


if __name__ == "__main__":
    main(*sys.argv[1:])
