"""Written text at several numbers of steps: to be read, and counted for repetition."""

from dataclasses import replace

from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.evals.text_metrics import text_statistics
from ldlm_jax.sampling.generate import generate


def evaluate(context: EvalContext) -> Results:
    """``text_statistics`` at each number of steps, and a few of the texts."""
    results: Results = {}
    for steps in context.step_counts:
        config = replace(context.sample, steps=steps)
        texts = [
            sample.text
            for sample in generate(
                context.generator, config, context.seed, num_samples=context.num_samples
            )
        ]
        for name, value in text_statistics(texts).items():
            results[f"samples/{name}_steps_{steps}"] = value
        results[f"samples/text_steps_{steps}"] = "\n".join(f"- {text}" for text in texts[:8])
    return results
