"""From noise to tokens: one batch, denoised and decoded block after block inside one jit.

Shape letters: B rows, L tokens, N latents, S latents of a block, T its tokens, D latent channels.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import EOS
from ldlm_jax.diffusion.solvers import row_keys
from ldlm_jax.models.denoiser import Denoiser, places_of
from ldlm_jax.models.dit import KNOWN, Memory
from ldlm_jax.models.token_layout import Places
from ldlm_jax.parallel.sharding import everywhere
from ldlm_jax.sampling.block import Block, decode, remember, solve
from ldlm_jax.sampling.rerank import log_likelihood
from ldlm_jax.sampling.spec import Dials, Page, Plan, Trace, View, Written
from ldlm_jax.train_state import LatentStats


@partial(jax.jit, static_argnames="plan")
def write_tokens(params, latents: LatentStats, page: Page, dials: Dials, *, plan: Plan) -> Written:
    """Denoise and decode one batch, of which no row depends on another.

    An outer scan runs over the blocks (a single one where whole texts are written), an inner scan
    over the steps. A finished block is decoded and read back by the encoder: what later blocks
    remember are the latents of its tokens, as in training. A block in which no row has anything to
    write costs nothing.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      page: what is given.
      dials: random key and settings of each row.
      plan: everything static.
    """
    denoiser = Denoiser.create(
        plan.models, params, plan.diffusion, latents,
        dials.temperature_B[:, None, None],
        dials.top_p_B[:, None, None] if plan.truncated else None,
    )  # fmt: skip
    places = places_of(page.segments_BxL, plan.models, plan.diffusion, page.known_BxN)
    desk = Desk(plan, denoiser, page, places, dials)
    carry = page.tokens_BxL, desk.first_memories(), jnp.zeros(len(page.tokens_BxL), bool)
    (tokens_BxL, *_), (steps, said) = jax.lax.scan(desk.next_block, carry, jnp.arange(desk.blocks))
    likelihood_B = jnp.zeros(len(tokens_BxL))
    if plan.scored:
        plain = replace(denoiser, temperature=1.0, top_p=None)
        keys_B = row_keys(dials.keys_B, desk.blocks)
        likelihood_B = log_likelihood(plain, tokens_BxL, places, page.known_BxN, keys_B)
    trace = None
    if plan.traced:  # both are (blocks, steps, B, tokens of a block)
        trace = Trace(*(x.transpose(2, 1, 0, 3).reshape(*x.shape[2:0:-1], -1) for x in said))
    evaluations_B = jnp.sum(steps, 0) * plan.evaluations(dials)
    return jax.tree.map(everywhere, Written(tokens_BxL, evaluations_B, likelihood_B, trace))


@dataclass(frozen=True)
class Desk:
    """All that stays the same while a batch is written. Made inside the jitted function."""

    plan: Plan
    denoiser: Denoiser
    page: Page
    places: Places
    dials: Dials

    @property
    def positions(self) -> int:
        """Latents of a row."""
        return self.page.known_BxN.shape[1]

    @property
    def size(self) -> int:
        """Latents of a block."""
        return self.plan.diffusion.block_size or self.positions

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return self.positions // self.size

    @property
    def reach(self) -> int:
        """Latents that are remembered."""
        return min(self.plan.memory or self.positions, self.positions)

    @property
    def per_latent(self) -> int:
        """Tokens of a latent."""
        return self.plan.models.vae.tokens_per_latent

    def encode(self, tokens_BxL, first) -> jax.Array:
        """Latents of as much text as is remembered, from this position on."""
        return self.denoiser.encode(
            _cut(tokens_BxL, first * self.per_latent, self.reach * self.per_latent),
            self.places.cut(first, self.reach), _cut(self.page.known_BxN, first, self.reach),
        )  # fmt: skip

    def first_memories(self) -> dict[View, Memory]:
        """Of all that is known, wherever it stands, with nothing written yet.

        What else is remembered here is overwritten before anything sees it.
        """
        if self.blocks == 1:
            return {}
        z_BxRxD, of_reach = self.encode(self.page.tokens_BxL, 0), self.places.cut(0, self.reach)
        known_BxR = _cut(self.page.known_BxN, 0, self.reach)

        def remember(view: View) -> Memory:
            state_BxR = jnp.where(known_BxR, view.mark, KNOWN)
            return self.denoiser.remember(z_BxRxD, state_BxR, of_reach, near=view.near)

        return {view: remember(view) for view in self.plan.views}

    def block(self, tokens_BxL, index, memories) -> Block:
        """The block of that number."""
        start, per_latent = index * self.size, self.per_latent
        first = jnp.clip(start + self.size - self.reach, 0, self.positions - self.reach)
        return Block(
            self.places.cut(start, self.size),
            _cut(self.page.known_BxN, start, self.size),
            _cut(self.encode(tokens_BxL, first), start - first, self.size),
            _cut(self.page.inside_BxL, start * per_latent, self.size * per_latent),
            memories,
        )

    def write_block(self, tokens_BxL, memories, index):
        """Its tokens, steps that each row took, and what else the solver was told."""
        block = self.block(tokens_BxL, index, memories)
        dials = self.dials._replace(keys_B=row_keys(self.dials.keys_B, index))
        denoiser = replace(self.denoiser, inside_BxL=block.inside_BxT)
        found = solve(denoiser, self.plan, block, dials)
        steps_B = jnp.minimum(found.steps_B, dials.steps_B.astype(int))
        return decode(denoiser, block, found.z), steps_B, found.said

    def next_block(self, carry, index):
        """Write a block where there is something to write; for a scan."""
        tokens_BxL, memories, ended_B = carry
        if memories:
            # The block before this one. The first has none, and sees nothing of what this adds.
            before = jnp.maximum(index - 1, 0)
            finished = self.block(tokens_BxL, before, memories)
            slot = before * self.size % self.reach
            memories = remember(self.denoiser, finished, slot)
        to_write_BxN = ~self.page.known_BxN & (self.places.segments_BxN > 0)
        needed_B = jnp.any(_cut(to_write_BxN, index * self.size, self.size), axis=1) & ~ended_B
        arguments = tokens_BxL, memories, index
        blank = jax.eval_shape(self.write_block, *arguments)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
        written_BxT, steps_B, said = jax.lax.cond(
            jnp.any(needed_B), self.write_block, lambda *_: blank, *arguments
        )
        T = written_BxT.shape[1]
        known_BxL = jnp.repeat(self.page.known_BxN, self.per_latent, axis=1)
        given_BxT, old_BxT = (_cut(x, index * T, T) for x in (known_BxL, tokens_BxL))
        written_BxT = jnp.where(given_BxT, old_BxT, written_BxT)
        tokens_BxL = jax.lax.dynamic_update_slice_in_dim(tokens_BxL, written_BxT, index * T, axis=1)
        ended_B |= jnp.any((written_BxT == EOS) & ~given_BxT, axis=1)
        if self.plan.on_block:
            jax.debug.callback(self.plan.on_block, index, written_BxT, ordered=True)
        return (tokens_BxL, memories, ended_B), (jnp.where(needed_B, steps_B, 0), said)


def _cut(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
