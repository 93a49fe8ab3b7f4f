"""What a batch of texts is written from, and what comes of it.

Shape letters: B rows, L tokens, N latents, S latents of a block, K steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.diffusion import time_sampling as time
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.solvers import EVALUATIONS, Solver
from ldlm_jax.models.dit import DROPPED, KNOWN
from ldlm_jax.train_state import Models


class View(NamedTuple):
    """What of the known text an evaluation of the denoiser sees.

    Attributes:
      mark: state of given positions.
      near: whether it sees next to nothing, for ``context_guidance``; see ``models.dit.DiT``.
    """

    mark: int = KNOWN
    near: bool = False


# All there is; without what was given; and the neighbours alone.
WHOLE, UNGIVEN, NEAR = View(), View(DROPPED), View(near=True)


@dataclass(frozen=True)
class Plan:
    """What a compiled writer is made for: a static argument.

    Attributes:
      models: the networks.
      diffusion: how the denoiser was trained.
      solver: how to step.
      steps: number of steps K of each block, the largest of all rows.
      grid: see ``SampleConfig``.
      guided: evaluate the denoiser also without the known part.
      self_guided: evaluate the denoiser also without its earlier estimate.
      context_guided: evaluate it also with the neighbours alone in sight.
      truncated: let the context propose likely tokens only.
      early: let rows stop before their last step.
      traced: keep what each step would decode to.
      scored: tell how likely the model finds what it wrote.
      memory: positions that a model with blocks remembers, the latest ones; 0 for all.
      on_block: called with each finished block's number and tokens (B, T), for a terminal that
        shows them as they come.
    """

    models: Models
    diffusion: DiffusionConfig
    solver: Solver
    steps: int
    grid: str = "law"
    guided: bool = False
    self_guided: bool = False
    context_guided: bool = False
    truncated: bool = False
    early: bool = False
    traced: bool = False
    scored: bool = False
    memory: int = 0
    on_block: Callable[[int, np.ndarray], None] | None = None

    @classmethod
    def of(cls, models: Models, diffusion: DiffusionConfig, config, window: int) -> "Plan":
        """That of rows written as a ``SampleConfig`` says, which remember ``window`` tokens."""
        return cls(
            models,
            diffusion.in_blocks(config.block_size),
            Solver(config.solver, config.churn),
            config.steps,
            config.grid,
            context_guided=config.context_guidance != 1.0,
            truncated=config.top_p < 1.0,
            early=config.patience > 0,
            memory=window // models.vae.tokens_per_latent,
        )

    @property
    def views(self) -> tuple[View, ...]:
        """Of which something is remembered: guidance compares two."""
        return (WHOLE,) + self.guided * (UNGIVEN,) + self.context_guided * (NEAR,)

    def times(self, positions: int, dials: "Dials") -> jax.Array:
        """Times (K + 1, B, positions) from noise, or as much of it as was asked for, to data."""
        progress_KxB = time.grid(dials.steps_B, self.steps)
        progress_KxBxS = time.stagger(progress_KxB, positions, dials.lag_B)
        times_KxBxS = progress_KxBxS
        if self.grid == "law":
            law = self.diffusion.law(self.models.vae.latent_channels)
            times_KxBxS = law.quantile(progress_KxBxS)
        return dials.strength_B[:, None] * times_KxBxS

    def evaluations(self, dials: "Dials") -> jax.Array:
        """Evaluations of the denoiser (B,) that a step of each row takes."""
        extra_B = (dials.guidance_B != 1) & self.guided
        extra_B = extra_B.astype(int) + ((dials.self_guidance_B != 1) & self.self_guided)
        extra_B += (dials.context_guidance_B != 1) & self.context_guided
        return EVALUATIONS[self.solver.name] * (1 + extra_B)


class Dials(NamedTuple):
    """What each row has of its own and needs no recompilation; see ``SampleConfig``."""

    keys_B: jax.Array
    steps_B: jax.Array
    guidance_B: jax.Array
    self_guidance_B: jax.Array
    context_guidance_B: jax.Array
    temperature_B: jax.Array
    top_p_B: jax.Array
    lag_B: jax.Array
    guidance_from_B: jax.Array
    guidance_to_B: jax.Array
    patience_B: jax.Array
    sure_B: jax.Array
    strength_B: jax.Array

    @classmethod
    def of(cls, keys: Sequence[jax.Array], configs: Sequence) -> "Dials":
        """Those of rows with these random keys and ``SampleConfig``s."""
        columns = (
            np.array([getattr(config, name.removesuffix("_B")) for config in configs], np.float32)
            for name in cls._fields[1:]
        )
        return cls(jnp.stack(list(keys)), *columns)


class Page(NamedTuple):
    """What is given of a batch of texts; see ``outline.Outline``.

    Attributes:
      tokens_BxL: known tokens, what is to be revised, and anything elsewhere.
      segments_BxL: 1 within the text, 0 beyond its length.
      known_BxN: true where latents are known.
      inside_BxL: true where the text cannot end.
    """

    tokens_BxL: jax.Array
    segments_BxL: jax.Array
    known_BxN: jax.Array
    inside_BxL: jax.Array

    @classmethod
    def blank(cls, rows: int, window: int, per_latent: int, endless: bool = False) -> "Page":
        """Nothing is given, of latents of so many tokens; ``endless`` texts fill the window."""
        shape = (rows, window)
        return cls(
            np.full(shape, MASK, np.int32),
            np.ones(shape, np.int32),
            np.zeros((rows, window // per_latent), bool),
            np.full(shape, endless),
        )


class Trace(NamedTuple):
    """What each step would decode to, and how probable these tokens were to it."""

    tokens_BxKxL: jax.Array
    confidence_BxKxL: jax.Array


class Written(NamedTuple):
    """A batch of texts.

    Attributes:
      tokens_BxL: token ids; what stands after a text's end means nothing.
      evaluations_B: of the denoiser, which each text took.
      likelihood_B: see ``choose.log_likelihood``; 0 unless asked for.
      trace: of the steps, if asked for.
    """

    tokens_BxL: jax.Array
    evaluations_B: jax.Array
    likelihood_B: jax.Array
    trace: Trace | None
