"""Measure repetition in long texts that may not end, beside the autoregressive baseline.

Command: PYTHONPATH=. python experiments/planning/looping.py LATENT_RUN AR_RUN OUT.json
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.baselines.sampling import Baseline, write_left_to_right
from ldlm_jax.data.special_ids import MASK
from ldlm_jax.evals.text_metrics import text_statistics
from ldlm_jax.sampling.blockwise import generate_tokens
from ldlm_jax.sampling.config import row_params
from ldlm_jax.sampling.spec import ConditioningBatch, Spec
from ldlm_jax.workdir import LoadedRun, load_run

LENGTHS, COUNT, STEPS = (512, 2048), 16, (5, 20)
# A top-p so small that the likeliest token alone remains.
GREEDY = 1e-3


def latent_texts(run: LoadedRun, length: int, steps: int, greedy: bool) -> list[str]:
    """Texts of the latent model, whose cache holds one window."""
    config = replace(run.experiment.sample, steps=steps, temperature=1.0,
                     top_p=GREEDY if greedy else 0.8, churn=0.0 if greedy else 2.0)  # fmt: skip
    generator = run.generator
    networks, configs = generator.networks, [config] * COUNT
    spec = Spec.of(networks, generator.diffusion, configs, generator.window)
    given = ConditioningBatch.blank(COUNT, length, networks.vae.tokens_per_latent, endless=True)
    rows = row_params(jax.random.split(jax.random.key(0), COUNT), configs)
    generated = generate_tokens(generator.params, generator.latents, given, rows, spec=spec)
    return [run.tokenizer.decode(row) for row in np.asarray(generated.tokens_BxL)]


def autoregressive_texts(baseline: Baseline, length: int, greedy: bool) -> list[str]:
    """Texts of the autoregressive model, whose cache holds all of the text.

    Greedy texts would all be the same, so that each begins with a sampled token.
    """
    prompts, given = np.full((COUNT, length), MASK, np.int32), np.zeros(COUNT, np.int32)

    def write(prompts, given, temperature):
        return np.asarray(write_left_to_right(
            baseline.model, baseline.params, prompts, given, jax.random.key(0),
            top_p=0.95, temperature=temperature, endless=True,
        ))  # fmt: skip

    if greedy:
        first = write(prompts[:, :2], given, 1.0)[:, 0]
        prompts[:, 0], given[:] = first, 1
    rows = write(prompts, given, 1e-3 if greedy else 1.0)
    return [baseline.prepared.tokenizer.decode(row) for row in rows]


def main(latent: str, ar: str, out: str) -> None:
    """Generate, count, print and store."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    results: dict[str, dict] = {}
    print("| texts | seq-rep-4 | loop rate | distinct-2 | word entropy |\n|---|---|---|---|---|")
    for length in LENGTHS:
        for greedy in (False, True):
            how = f"{length} tokens, {'greedy' if greedy else 'sampled'}"
            rows = {
                f"latent, {steps} steps": latent_texts(run, length, steps, greedy)
                for steps in STEPS
            }
            rows["autoregressive"] = autoregressive_texts(baseline, length, greedy)
            for name, texts in rows.items():
                counted = text_statistics(texts)
                results[f"{name}, {how}"] = counted | {"example": texts[0][:400]}
                shown = ("seq_rep_4", "loop_rate", "distinct_2", "entropy")
                numbers = " | ".join(f"{counted[key]:.3f}" for key in shown)
                print(f"| {name}, {how} | {numbers} |", flush=True)
    facts = {"count": COUNT, "seed": 0, "results": results}
    Path(out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
