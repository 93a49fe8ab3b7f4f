"""What an evaluator is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from ldlm_jax.data.dataset import Prepared
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.generator import Generator


@dataclass(frozen=True)
class EvalContext:
    """Everything an evaluator may use.

    Attributes:
      generator: the averaged model.
      batches: batches of a held-out split, on the mesh.
      sample: how to generate text.
      num_samples: texts to generate for each number of steps.
      step_counts: numbers of denoising steps to generate at.
      seed: of all randomness.
      prepared: the corpus.
      split: the held-out split that ``batches`` come from.
      scorer: name or path of the model that scores what was generated, see ``pretrained.zoo``.
      guidances: weights of guidance to generate continuations with, besides that of ``sample``.
      levels: sets of puzzles to solve, see ``puzzles.base.Task``; empty for the first.
      report: takes a line about how far a long evaluation has come.
    """

    generator: Generator
    batches: list[dict]
    sample: SampleConfig
    num_samples: int
    step_counts: tuple[int, ...]
    seed: int
    prepared: Prepared
    split: str = "validation"
    scorer: str = "smollm2-135m"
    guidances: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    report: Callable[[str], None] = lambda _: None

    def mean_over_batches(self, function, *args, generator: Generator | None = None, **static):
        """Means of several quantities over the held-out batches.

        Args:
          function: (params, latents, batch, key, *args, networks, diffusion, **static) to pairs of
            a sum and the count it is out of.
          *args: arrays.
          generator: in place of the context's own.
          **static: static arguments.

        Returns:
          One mean for each pair, nan where there is nothing to count.
        """
        asked = generator or self.generator
        key = jax.random.fold_in(jax.random.key(self.seed), 0xE7A1)
        totals = None
        for i, batch in enumerate(self.batches):
            pairs = function(
                asked.params, asked.latents, batch, jax.random.fold_in(key, i), *args,
                networks=asked.networks, diffusion=asked.diffusion, **static,
            )  # fmt: skip
            totals = pairs if totals is None else jax.tree.map(lambda a, b: a + b, totals, pairs)
        return [float(total) / float(count) if count else float("nan") for total, count in totals]


# Metric name -> number, or text to be read.
Results = dict[str, float | str]
Evaluator = Callable[[EvalContext], Results]
