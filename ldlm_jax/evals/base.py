"""What an evaluator is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from ldlm_jax.data.dataset import Prepared
from ldlm_jax.sampling.generate import Writer
from ldlm_jax.sampling.request import SampleConfig
from ldlm_jax.train_step import Recipe


@dataclass(frozen=True)
class EvalContext:
    """Everything an evaluator may use.

    Attributes:
      writer: the averaged model.
      recipe: how it is trained.
      batches: batches of a held-out split, on the mesh.
      sample: how to write text.
      num_samples: texts to write for each number of steps.
      step_counts: numbers of denoising steps to write at.
      seed: of all randomness.
      prepared: the corpus.
      split: the held-out split that ``batches`` come from.
      judge: name or path of the model that reads what was written, see ``teachers.named``.
      guidances: weights of guidance to write continuations with, besides that of ``sample``.
      say: takes a line about how far a long evaluation has come.
    """

    writer: Writer
    recipe: Recipe
    batches: list[dict]
    sample: SampleConfig
    num_samples: int
    step_counts: tuple[int, ...]
    seed: int
    prepared: Prepared
    split: str = "validation"
    judge: str = "smollm2-135m"
    guidances: tuple[float, ...] = ()
    say: Callable[[str], None] = lambda _: None

    @property
    def key(self) -> jax.Array:
        """The evaluation's random key."""
        return jax.random.fold_in(jax.random.key(self.seed), 0xE7A1)


# Metric name -> number, or text to be read.
Results = dict[str, float | str]
Evaluator = Callable[[EvalContext], Results]
