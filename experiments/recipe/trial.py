"""Train a variant of the demo for a sixth of its steps, and score its texts by trigrams.

Command: PYTHONPATH=. python experiments/recipe/trial.py NAME [section.key=value ...]
Trains in runs/trials/NAME and writes experiments/recipe/trials/NAME.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from experiments.compare import last_logged, short
from experiments.recipe.ngram import TrigramScorer
from ldlm_jax.config import load_config
from ldlm_jax.sampling.generate import generate
from ldlm_jax.train import train
from ldlm_jax.workdir import load_run

CONFIG, STEPS = "configs/web_cpu.py", 240


def main(name: str, *overrides: str) -> None:
    """Run one trial."""
    workdir = Path("runs/trials") / name
    train(load_config(CONFIG, [*short(CONFIG, STEPS), *overrides]), str(workdir))
    kept = ("tokens_per_second", "reconstruction/", "denoising/")
    result = {"name": name, "overrides": overrides}
    result |= {key: value for key, value in last_logged(workdir).items() if key.startswith(kept)}
    run, scorer = load_run(workdir), TrigramScorer()
    for steps in (5, 20):
        config = replace(run.experiment.sample, steps=steps, batch_size=64)
        texts = [s.text for s in generate(run.generator, config, 1, num_samples=256)]
        result[f"steps {steps}"] = scorer(texts) | {"texts": texts[:10]}
    text = json.dumps(result, indent=1)
    print(text)
    folder = Path("experiments/recipe/trials")
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
