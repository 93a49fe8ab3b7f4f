"""Written text at several numbers of steps: to be read, and counted for repetition."""

import math
from collections import Counter
from collections.abc import Sequence

from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.generate import generate


def _ngrams(tokens: Sequence, n: int) -> list[tuple]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """Diversity and repetition of a set of texts, over words.

    Returns:
      ``distinct_n``: different n-grams over all n-grams of the set (n = 1, 2, 3); ``seq_rep_4``:
      mean share of 4-grams in a text that occurred in it before (Welleck et al. 2020);
      ``loop_rate``: share of texts with a 4-gram three times or more; ``entropy``: of the set's
      words, in nats; ``words``: mean length. A quantity that has no n-gram to count is left out.
    """
    words = [text.split() for text in texts]
    results = {}
    for n in (1, 2, 3):
        grams = [gram for text in words for gram in _ngrams(text, n)]
        if grams:
            results[f"distinct_{n}"] = len(set(grams)) / len(grams)
    fours = [Counter(_ngrams(text, 4)) for text in words if len(text) >= 4]
    if fours:
        repeated = [1 - len(count) / count.total() for count in fours]
        results["seq_rep_4"] = sum(repeated) / len(repeated)
        results["loop_rate"] = sum(max(c.values()) >= 3 for c in fours) / len(texts)
    counts = Counter(word for text in words for word in text)
    if counts:
        total = counts.total()
        results["entropy"] = -sum(c / total * math.log(c / total) for c in counts.values())
        results["words"] = total / len(texts)
    return results


def evaluate(context: EvalContext) -> Results:
    """``text_statistics`` at each number of steps, and a few of the texts."""
    results: Results = {}
    for steps in context.step_counts:
        config = type(context.sample)(**{**vars(context.sample), "steps": steps})
        texts = [
            sample.text
            for sample in generate(
                context.writer, config, context.seed, num_samples=context.num_samples
            )
        ]
        for name, value in text_statistics(texts).items():
            results[f"samples/{name}_steps_{steps}"] = value
        results[f"samples/text_steps_{steps}"] = "\n".join(f"- {text}" for text in texts[:8])
    return results
