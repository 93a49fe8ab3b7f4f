"""From noise to tokens: one batch, denoised and decoded block after block inside one jit.

Shape letters: B rows, L tokens, N latents, S latents of a block, D latent channels, K steps.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.denoiser import Denoiser, DiffusionConfig, places_of
from ldlm_jax.diffusion import time
from ldlm_jax.diffusion.guidance import guide
from ldlm_jax.diffusion.sampler import Solver, row_keys, row_noise, sample
from ldlm_jax.models.dit import DROPPED, KNOWN, UNKNOWN, Memory
from ldlm_jax.models.layers import activation_dtype
from ldlm_jax.models.places import Places
from ldlm_jax.sharding import everywhere
from ldlm_jax.train_state import LatentStats, Models


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
      truncated: let the context propose likely tokens only.
      draft_steps: steps (1 to K) after which the estimate is decoded too.
    """

    models: Models
    diffusion: DiffusionConfig
    solver: Solver
    steps: int
    grid: str = "law"
    guided: bool = False
    self_guided: bool = False
    truncated: bool = False
    draft_steps: tuple[int, ...] = ()

    @property
    def marks(self) -> tuple[int, ...]:
        """States of known positions: guidance compares two."""
        return (KNOWN, DROPPED) if self.guided else (KNOWN,)

    def times(self, positions: int, dials: "Dials") -> jax.Array:
        """Times (K + 1, B, positions) from noise to data."""
        progress_KxB = time.grid(dials.steps_B, self.steps)
        progress_KxBxS = time.stagger(progress_KxB, positions, dials.lag_B)
        if self.grid == "uniform":
            return progress_KxBxS
        return self.diffusion.law(self.models.vae.latent_channels).quantile(progress_KxBxS)


class Dials(NamedTuple):
    """What each row has of its own and needs no recompilation; see ``SampleConfig``."""

    keys_B: jax.Array
    steps_B: jax.Array
    guidance_B: jax.Array
    self_guidance_B: jax.Array
    temperature_B: jax.Array
    top_p_B: jax.Array
    lag_B: jax.Array


class Block(NamedTuple):
    """A block that is being written, and what is remembered of those before it.

    Attributes:
      places: of its positions.
      known_BxS: true where the text is given.
      given_BxSxD: the clean latents there.
      memories: of earlier blocks, one for each of ``Plan.marks``; empty for whole texts.
    """

    places: Places
    known_BxS: jax.Array
    given_BxSxD: jax.Array
    memories: tuple[Memory, ...]

    def keep_given(self, z_BxSxD: jax.Array) -> jax.Array:
        """Latents with the given ones in their places."""
        return jnp.where(self.known_BxS[..., None], self.given_BxSxD, z_BxSxD)


@partial(jax.jit, static_argnames="plan")
def write_tokens(
    params,
    latents: LatentStats,
    tokens_BxL,
    segments_BxL,
    known_BxN,
    dials: Dials,
    *,
    plan: Plan,
):
    """Denoise and decode one batch, of which no row depends on another.

    An outer scan runs over the blocks (a single one where whole texts are written), an inner scan
    over the steps. A finished block is decoded and read back by the encoder: what later blocks
    remember are the latents of its tokens, as in training.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      tokens_BxL: known tokens; what stands elsewhere is not looked at.
      segments_BxL: 1 within the text to be written, 0 beyond its length.
      known_BxN: true where latents are known.
      dials: random key and settings of each row.
      plan: everything static.

    Returns:
      tokens (B, L), and drafts (len(draft_steps), B, L).
    """
    models, N = plan.models, known_BxN.shape[1]
    size = plan.diffusion.block_size or N
    places = places_of(segments_BxL, models, plan.diffusion)
    temperature_Bx1x1 = dials.temperature_B[:, None, None]
    top_p_Bx1x1 = dials.top_p_B[:, None, None] if plan.truncated else None
    denoiser = Denoiser.create(
        models, params, plan.diffusion, latents, temperature_Bx1x1, top_p_Bx1x1
    )
    tokens_per_block = size * models.vae.tokens_per_latent
    given_BxL = jnp.repeat(known_BxN, models.vae.tokens_per_latent, axis=1)

    def write_block(carry, index):
        tokens_BxL, memories = carry
        start = index * size
        z_BxNxD = denoiser.encode(tokens_BxL, places, known_BxN)

        def cut(start, memories):
            return Block(
                places.cut(start, size), _cut(known_BxN, start, size),
                _cut(z_BxNxD, start, size), memories,
            )  # fmt: skip

        if memories:
            # The block before this one. The first has none, and sees nothing of what this adds.
            before = jnp.maximum(start - size, 0)
            memories = _remember(denoiser, plan.marks, cut(before, memories), before)
        block = cut(start, memories)
        of_block = dials._replace(keys_B=row_keys(dials.keys_B, index))
        z_BxSxD, estimates = _solve(denoiser, plan, block, of_block)
        written = _decode(denoiser, block, z_BxSxD)
        first = index * tokens_per_block
        written = jnp.where(
            _cut(given_BxL, first, tokens_per_block),
            _cut(tokens_BxL, first, tokens_per_block),
            written,
        )
        tokens_BxL = jax.lax.dynamic_update_slice_in_dim(tokens_BxL, written, first, axis=1)
        drafts = [_decode(denoiser, block, estimates[step - 1]) for step in plan.draft_steps]
        return (tokens_BxL, memories), jnp.stack(drafts) if drafts else None

    blank = jnp.where(given_BxL, tokens_BxL, MASK)
    memories = tuple(_nothing(models, places) for _ in plan.marks) if size < N else ()
    (tokens_BxL, _), drafts = jax.lax.scan(write_block, (blank, memories), jnp.arange(N // size))
    if drafts is None:
        return everywhere(tokens_BxL), jnp.zeros((0, *tokens_BxL.shape), tokens_BxL.dtype)
    drafts = jnp.moveaxis(drafts, 0, 2).reshape(-1, *tokens_BxL.shape)
    return everywhere(tokens_BxL), everywhere(drafts)


def _solve(denoiser: Denoiser, plan: Plan, block: Block, dials: Dials):
    """Latents of the block, and the estimates after each step if drafts are asked for."""

    def estimate(z_BxSxD, t_BxS, earlier_BxSxD):
        z_BxSxD = block.keep_given(z_BxSxD)
        blank_BxSxD = jnp.zeros_like(earlier_BxSxD)
        if plan.diffusion.self_condition == 0:
            earlier_BxSxD = blank_BxSxD

        def ask(which, earlier_BxSxD):
            state_BxS = jnp.where(block.known_BxS, plan.marks[which], UNKNOWN)
            memory = block.memories[which] if block.memories else None
            return denoiser(
                z_BxSxD, t_BxS, state_BxS, earlier_BxSxD, block.places, memory
            ).clean_BxNxD

        clean_BxSxD = with_both_BxSxD = ask(0, earlier_BxSxD)
        if plan.guided:
            less_BxSxD = ask(1, earlier_BxSxD)
            weight_Bx1x1 = dials.guidance_B[:, None, None]
            clean_BxSxD += guide(with_both_BxSxD, less_BxSxD, weight_Bx1x1) - with_both_BxSxD
        if plan.self_guided:
            less_BxSxD = ask(0, blank_BxSxD)
            weight_Bx1x1 = dials.self_guidance_B[:, None, None]
            clean_BxSxD += guide(with_both_BxSxD, less_BxSxD, weight_Bx1x1) - with_both_BxSxD
        return block.keep_given(clean_BxSxD)

    times_KxBxS = plan.times(block.known_BxS.shape[1], dials)
    return sample(
        estimate,
        row_noise(row_keys(dials.keys_B, 0), block.given_BxSxD.shape[1:]),
        jnp.where(block.known_BxS, 0.0, times_KxBxS),
        row_keys(dials.keys_B, 1),
        plan.solver,
        keep_estimates=bool(plan.draft_steps),
    )


def _decode(denoiser: Denoiser, block: Block, z_BxSxD) -> jax.Array:
    """The likeliest tokens of the block."""
    memory = block.memories[0] if block.memories else None
    logits = denoiser.token_logits(
        block.keep_given(z_BxSxD), jnp.zeros(block.known_BxS.shape), block.places, memory
    )
    # A text never holds a masked token.
    return jnp.argmax(logits.at[..., MASK].set(-jnp.inf), axis=-1)


def _remember(denoiser: Denoiser, marks, block: Block, start) -> tuple[Memory, ...]:
    """The memories with the finished block at ``start`` added."""
    added = []
    for mark, memory in zip(marks, block.memories, strict=True):
        state_BxS = jnp.where(block.known_BxS, mark, KNOWN)
        new = denoiser.remember(block.given_BxSxD, state_BxS, block.places, memory)
        grown = jax.tree.map(
            lambda whole, own: jax.lax.dynamic_update_slice_in_dim(whole, own, start, axis=2),
            memory.keys_and_values, new.keys_and_values,
        )  # fmt: skip
        added.append(memory._replace(keys_and_values=grown))
    return tuple(added)


def _nothing(models: Models, places: Places) -> Memory:
    """A memory of the whole window, with nothing in it yet."""
    dit = models.dit
    shape = (dit.layers, *places.segments_BxN.shape, dit.heads, dit.width // dit.heads)
    blank = jnp.zeros(shape, activation_dtype(jnp.dtype(dit.dtype)))
    return Memory((blank, blank), places)


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
