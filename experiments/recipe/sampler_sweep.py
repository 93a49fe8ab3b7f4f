"""Text statistics of one run over solvers, guidance and steps, with a trigram judge.

Command: PYTHONPATH=. python experiments/recipe/sampler_sweep.py runs/web_cpu OUT.json [SAMPLES]
"""

import json
import sys
from dataclasses import replace

from experiments.recipe.ngram import Judge
from ldlm_jax.generate import generate
from ldlm_jax.run_folder import load_run

# Changes to the run's own sampler.
TRIALS = {
    "5 steps": {"steps": 5},
    "20 steps": {"steps": 20},
    "20 steps, no lag": {"steps": 20, "lag": 0.0},
    "20 steps, temperature 1": {"steps": 20, "temperature": 1.0},
    "100 steps": {"steps": 100},
}


def main(workdir: str, out: str, num_samples: str = "256") -> None:
    """Write and judge ``num_samples`` texts for each trial."""
    count = int(num_samples)
    run, judge = load_run(workdir), Judge()
    rows = {"held-out text": judge(judge.held_out[:count])}
    for name, changes in TRIALS.items():
        config = replace(run.experiment.sample, batch_size=64, **changes)
        texts = [s.text for s in generate(run.writer, config, 1, num_samples=count)]
        rows[name] = judge(texts)
        print(name, rows[name], *texts[:4], sep="\n  ", flush=True)
        rows[name]["texts"] = texts[:6]
    with open(out, "w") as file:
        result = {"workdir": workdir, "seed": 1, "num_samples": count, "rows": rows}
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
