"""Repetition in long texts that may not end, beside the autoregressive baseline.

Command: PYTHONPATH=. python experiments/planning/looping.py LATENT_RUN AR_RUN OUT.json
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from experiments.half_hour.baseline import Baseline, write_left_to_right
from ldlm_jax.data.special_ids import MASK
from ldlm_jax.evals.text_metrics import text_statistics
from ldlm_jax.sampling.blockwise import write_tokens
from ldlm_jax.sampling.spec import Dials, Page, Plan
from ldlm_jax.workdir import load_run

LENGTHS, COUNT, STEPS = (512, 2048), 16, (5, 20)
# A nucleus so small that the context proposes its likeliest token alone.
GREEDY = 1e-3


def ours(run, length: int, steps: int, greedy: bool) -> list[str]:
    """Texts of the latent model, which remembers one window."""
    config = replace(run.experiment.sample, steps=steps, temperature=1.0,
                     top_p=GREEDY if greedy else 0.8, churn=0.0 if greedy else 2.0)  # fmt: skip
    writer = run.writer
    plan = Plan.of(writer.models, writer.diffusion, config, writer.window)
    page = Page.blank(COUNT, length, 1, endless=True)
    dials = Dials.of(jax.random.split(jax.random.key(0), COUNT), [config] * COUNT)
    written = write_tokens(writer.params, writer.latents, page, dials, plan=plan)
    return [run.tokenizer.decode(row) for row in np.asarray(written.tokens_BxL)]


def theirs(baseline: Baseline, length: int, greedy: bool) -> list[str]:
    """Texts of the autoregressive model, which remembers all of the text.

    Greedy texts would all be one: each begins with a sampled token.
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
    """Write, count, print and store."""
    run, baseline = load_run(latent), Baseline.load("ar", ar)
    results: dict[str, dict] = {}
    print("| texts | seq-rep-4 | loop rate | distinct-2 | word entropy |\n|---|---|---|---|---|")
    for length in LENGTHS:
        for greedy in (False, True):
            how = f"{length} tokens, {'greedy' if greedy else 'sampled'}"
            rows = {f"latent, {steps} steps": ours(run, length, steps, greedy) for steps in STEPS}
            rows["autoregressive"] = theirs(baseline, length, greedy)
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
