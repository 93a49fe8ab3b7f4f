"""Evaluators, plugged in by name from the config (``train.evals``)."""

from ldlm_jax.evals import bound, context, denoising, puzzles, quality, reconstruction, samples
from ldlm_jax.evals.base import EvalContext, Evaluator, Results

REGISTRY: dict[str, Evaluator] = {
    "reconstruction": reconstruction.evaluate,
    "denoising": denoising.evaluate,
    "context": context.evaluate,
    "bound": bound.evaluate,
    "puzzles": puzzles.evaluate,
    "samples": samples.evaluate,
    "quality": quality.evaluate,
}


def run_evals(names: tuple[str, ...], given: EvalContext) -> Results:
    """Results of several evaluators by metric name."""
    results: Results = {}
    for name in names:
        results |= REGISTRY[name](given)
    return results
