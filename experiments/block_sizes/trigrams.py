"""Score the runs of this comparison by trigrams, at a low temperature, as experiments/recipe/ does.

Command: PYTHONPATH=. python experiments/block_sizes/trigrams.py
"""

import json
from dataclasses import replace
from pathlib import Path

from experiments.block_sizes.arms import ARMS
from experiments.compare import workdir_of
from experiments.recipe.ngram import TrigramScorer
from ldlm_jax.sampling.generate import generate
from ldlm_jax.workdir import load_run

COUNT, SEED, STEPS = 256, 1, (20, 100)
COLUMNS = ("trigram_perplexity", "distinct_2", "entropy", "loop_rate", "words", "evaluations")


def main() -> None:
    """Generate, score, print and store."""
    scorer, results = TrigramScorer(), {}
    print(f"| arm | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for arm in ARMS:
        run = load_run(workdir_of("block_sizes", arm, "0"))
        for steps in STEPS:
            config = replace(
                run.experiment.sample, steps=steps, temperature=0.7, top_p=1.0, batch_size=64
            )
            samples = list(generate(run.generator, config, SEED, num_samples=COUNT))
            evaluations = sum(sample.evaluations for sample in samples) / COUNT
            row = scorer([sample.text for sample in samples]) | {"evaluations": evaluations}
            results.setdefault(arm, {})[steps] = row
            numbers = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
            print(f"| {arm}, {steps} steps | {numbers} |", flush=True)
    Path("experiments/block_sizes/trigrams.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
