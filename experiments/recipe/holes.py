"""Fill holes in held-out texts by one run, under several settings of the sampler, and score them.

Command: PYTHONPATH=. python experiments/recipe/holes.py RUN OUT.json SAMPLES WORDS \
           "steps=1 solver=ancestral block_size=1 time_offset=0 top_p=0.95" "... best_of=8" ...
Each text of the validation split lacks ``WORDS`` words in its middle. The hole has as many tokens
as they had; if a setting begins with ``open``, the run chooses its length. ``found`` is the share
of texts that come back as they were. ``longer`` is by how many tokens they exceed the real ones.
"""

import json
import re
import sys

import numpy as np

from experiments.recipe.sampler_sweep import changed
from ldlm_jax.data.dataset import prepare
from ldlm_jax.evals.quality import QualityEvaluator, headline
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.request import Request
from ldlm_jax.workdir import load_run

SEED = 1


def with_hole(text: str, width: int, tokenizer) -> str:
    """A template: the text without the words in its middle."""
    words = text.split()
    first = (len(words) - width) // 2
    missing = " ".join(words[first : first + width])
    size = len(tokenizer.encode([f" {missing}"])[0])
    return f"{' '.join(words[:first])} ____{{{size}}} {' '.join(words[first + width :])}"


def main(workdir: str, out: str, num_samples: str, words: str, *settings: str) -> None:
    """Fill and score those of ``num_samples`` texts that are long enough, under each setting."""
    run, width = load_run(workdir), int(words)
    prepared = prepare(run.experiment.data)
    generator = run.generator
    evaluator = QualityEvaluator(
        prepared, "smollm2-135m", "validation", generator.window, int(num_samples)
    )
    # With three words on each side, and one space between all.
    real = [" ".join(t.split()) for t in evaluator.held_out if len(t.split()) >= width + 6]
    templates = [with_hole(text, width, prepared.tokenizer) for text in real]
    rows = {"real": evaluator.measure(real, real=True)}
    print(f"{len(real)} texts\n{'real':70} {headline(rows['real'])}", flush=True)
    sizes = np.array([len(ids) for ids in prepared.tokenizer.encode(real)])
    for setting in settings:
        how = setting.removeprefix("open ")
        config = changed(run.experiment.sample, how)
        asked = [re.sub(r"\{\d+\}", "", t) if how != setting else t for t in templates]
        requests = [Request("", SEED, i, config, template=t) for i, t in enumerate(asked)]
        samples = list(generate_requests(generator, requests))
        texts = [s.text for s in samples]
        found = float(np.mean([a == b for a, b in zip(texts, real, strict=True)]))
        longer = float(np.mean([len(s.tokens) - 1 for s in samples] - sizes))
        rows[setting] = evaluator.measure(texts) | {"found": found, "longer": longer}
        print(
            f"{setting:70} {headline(rows[setting])}, {found = :.3f}, {longer = :.2f}", flush=True
        )
        record = {
            "workdir": workdir,
            "seed": SEED,
            "words": width,
            "texts": len(real),
            "rows": rows,
        }
        with open(out, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
