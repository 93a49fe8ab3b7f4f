"""Puzzles of a held-out split: how many are solved, by the number of denoising steps."""

from dataclasses import replace

import numpy as np

from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.sampling.generate import generate_requests
from ldlm_jax.sampling.puzzles import held_out, requests_of, task_of


def evaluate(context: EvalContext) -> Results:
    """Share of puzzles solved at each number of steps, and denoiser evaluations where they vary."""
    data = context.prepared.config
    task = task_of(data.source)
    results: Results = {}
    for level in context.levels or task.levels[:1]:
        puzzles = held_out(data, context.split, level, context.num_samples, context.seed)
        suffix = level.replace(" ", "_")
        for steps in context.step_counts:
            config = replace(context.sample, steps=steps)
            requests = requests_of(puzzles, config, context.seed)
            samples = list(generate_requests(context.generator, requests))
            right = [task.solved(p, s.text) for p, s in zip(puzzles, samples, strict=True)]
            results[f"puzzles/solved_{suffix}_steps_{steps}"] = float(np.mean(right))
            kept = [p.kept(s.text) for p, s in zip(puzzles, samples, strict=True)]
            results[f"puzzles/kept_{suffix}_steps_{steps}"] = float(np.mean(kept))
            if config.stable_steps:
                evaluations = float(np.mean([s.evaluations for s in samples]))
                results[f"puzzles/evaluations_{suffix}_steps_{steps}"] = evaluations
            context.report(f"{level}, {steps} steps: {np.mean(right):.3f} of {len(right)} solved")
    return results
