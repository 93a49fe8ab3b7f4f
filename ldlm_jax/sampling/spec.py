"""What a batch of texts is generated from, and what comes of it.

Shape letters: B rows, L tokens, N latents, S latents of a block, K steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from ldlm_jax.data.special_ids import MASK
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.solvers import Solver
from ldlm_jax.diffusion.time_grid import quantile_grid, rolling
from ldlm_jax.models.dit import HIDDEN, OBSERVED
from ldlm_jax.models.networks import Networks
from ldlm_jax.sampling.config import SampleConfig, knobs_in_use


class Branch(NamedTuple):
    """How an evaluation of the denoiser sees the clean text; guidance compares two.

    Attributes:
      conditioning: of observed positions.
      short: clean latents attend to themselves alone.
    """

    conditioning: int = OBSERVED
    short: bool = False

    @property
    def window(self) -> int | None:
        """How many positions away clean latents attend at most."""
        return 0 if self.short else None


# All there is; without what was observed; and the neighbours alone.
FULL, UNCONDITIONAL, SHORT = Branch(), Branch(HIDDEN), Branch(short=True)


@dataclass(frozen=True)
class Spec:
    """What a compiled sampler is made for: a static argument.

    Attributes:
      networks: the networks.
      diffusion: how the denoiser was trained.
      solver: how to step.
      steps: number of steps K of each block, the largest of all rows.
      in_use: ROW knobs that can be off and are not, see ``config.knobs_in_use``.
      traced: keep what each step would decode to.
      scored: also return the likelihood of what was generated.
      cached_latents: that a model with blocks keeps, the latest ones; 0 for all.
      on_block: called with each finished block's number and tokens (B, T), to show them as they
        come; not always in order, see ``stream.InOrder``.
    """

    networks: Networks
    diffusion: DiffusionConfig
    solver: Solver
    steps: int
    in_use: frozenset[str] = frozenset()
    traced: bool = False
    scored: bool = False
    cached_latents: int = 0
    on_block: Callable[[int, np.ndarray], None] | None = None

    @classmethod
    def of(cls, networks: Networks, diffusion: DiffusionConfig, configs, window: int) -> "Spec":
        """That of rows generated as ``SampleConfig``s say, with a cache of ``window`` tokens."""
        first: SampleConfig = configs[0]
        return cls(
            networks,
            diffusion.in_blocks(first.block_size),
            Solver(first.solver, first.churn, diffusion.noise),
            max(config.steps for config in configs),
            knobs_in_use(configs),
            cached_latents=window // networks.vae.tokens_per_latent,
        )

    def without(self, knob: str) -> "Spec":
        """The same with a knob off."""
        return replace(self, in_use=self.in_use - {knob})

    @property
    def early(self) -> bool:
        """Whether rows may stop before their last step."""
        return "stable_steps" in self.in_use

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Of which there is a cache."""
        branches = [FULL]
        branches += [UNCONDITIONAL] * ("guidance" in self.in_use)
        branches += [SHORT] * ("context_guidance" in self.in_use)
        return tuple(branches)

    def times(self, positions: int, rows: dict[str, jax.Array]) -> jax.Array:
        """Times (K + 1, B, positions) from noise, or as much of it as was asked for, to data."""
        quantiles_KxB = quantile_grid(rows["steps"], self.steps)
        times_KxBxS = rolling(quantiles_KxB, positions, rows["time_offset"])
        distribution = self.diffusion.times(self.networks.vae.latent_channels)
        return rows["strength"][:, None] * distribution.quantile(times_KxBxS)

    def evaluations(self, rows: dict[str, jax.Array]) -> jax.Array:
        """Evaluations of the denoiser (B,) that a step of each row takes."""
        guided = ("guidance", "self_condition_guidance", "context_guidance")
        extra_B = sum((rows[name] != 1).astype(int) for name in guided if name in self.in_use)
        return 1 + extra_B


class ConditioningBatch(NamedTuple):
    """What is given of a batch of texts; see ``template.Template``.

    Attributes:
      tokens_BxL: observed tokens, what is to be revised, and anything elsewhere.
      segments_BxL: 1 within the text, 0 beyond its length.
      observed_BxN: true where latents are observed.
      no_end_BxL: true where the text cannot end.
    """

    tokens_BxL: jax.Array
    segments_BxL: jax.Array
    observed_BxN: jax.Array
    no_end_BxL: jax.Array

    @classmethod
    def blank(cls, rows: int, window: int, tokens_per_latent: int, endless: bool = False):
        """Nothing is given; ``endless`` texts fill the window."""
        shape = (rows, window)
        return cls(
            np.full(shape, MASK, np.int32),
            np.ones(shape, np.int32),
            np.zeros((rows, window // tokens_per_latent), bool),
            np.full(shape, endless),
        )


class Trace(NamedTuple):
    """What each step would decode to, and the probabilities of these tokens."""

    tokens_BxKxL: jax.Array
    confidence_BxKxL: jax.Array


class Generated(NamedTuple):
    """A batch of texts.

    Attributes:
      tokens_BxL: token ids; what stands after a text's end means nothing.
      evaluations_B: of the denoiser, which each text took.
      likelihood_B: see ``rerank.log_likelihood``; 0 unless asked for.
      trace: of the steps, if asked for.
    """

    tokens_BxL: jax.Array
    evaluations_B: jax.Array
    likelihood_B: jax.Array
    trace: Trace | None
