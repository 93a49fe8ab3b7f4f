"""Text statistics of one run over solvers, guidance and steps, with a trigram judge.

Command: python experiments/recipe/sampler_sweep.py runs/web_cpu OUT.json [SAMPLES]
"""

import json
import sys
from dataclasses import replace

from experiments.recipe.ngram import Trigram
from ldlm_jax.data.build import prepare, read_texts
from ldlm_jax.evals.samples import text_statistics
from ldlm_jax.generate import generate
from ldlm_jax.run_folder import load_run

# Changes to the run's own sampler.
TRIALS = {
    "5 steps": {"steps": 5, "lag": 1.0},
    "20 steps": {"steps": 20, "lag": 1.0},
    "20 steps, no lag": {"steps": 20, "lag": 0.0},
    "20 steps, temperature 1": {"steps": 20, "lag": 1.0, "temperature": 1.0},
    "100 steps": {"steps": 100, "lag": 1.0},
}


def main(workdir: str, out: str, num_samples: str = "64") -> None:
    """Write and judge ``num_samples`` texts for each trial."""
    num_samples = int(num_samples)
    run = load_run(workdir)
    prepared = prepare(run.experiment.data)
    tokenizer = prepared.tokenizer
    judge = Trigram(
        tokenizer.encode(list(read_texts(prepared.text, "train"))), tokenizer.vocab_size
    )
    held_out = list(read_texts(prepared.text, "validation"))[:num_samples]
    rows = {"held-out text": judged(judge, tokenizer, held_out)}
    for name, changes in TRIALS.items():
        config = replace(run.experiment.sample, batch_size=64, **changes)
        texts = [s.text for s in generate(run.writer, config, 1, num_samples=num_samples)]
        rows[name] = judged(judge, tokenizer, texts) | {"texts": texts[:6]}
        print(name, {k: v for k, v in rows[name].items() if k != "texts"}, *texts[:4], sep="\n  ")
    with open(out, "w") as file:
        json.dump({"workdir": workdir, "seed": 1, "num_samples": num_samples, "rows": rows}, file,
                  indent=1)  # fmt: skip


def judged(judge: Trigram, tokenizer, texts: list[str]) -> dict:
    """Trigram perplexity beside the statistics that keep it honest."""
    perplexity = judge.perplexity(tokenizer.encode(texts))
    statistics = {k: round(v, 3) for k, v in text_statistics(texts).items()}
    return {"trigram_perplexity": round(perplexity, 1), **statistics}


if __name__ == "__main__":
    main(*sys.argv[1:])
