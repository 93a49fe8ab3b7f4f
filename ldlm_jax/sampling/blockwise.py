"""From noise to tokens: one batch, denoised and decoded block after block inside one jit.

Shape letters: B rows, L tokens, N latents, S latents of a block, T its tokens, D latent channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ldlm_jax.data.special_ids import EOS
from ldlm_jax.diffusion.rows import row_keys, row_noise
from ldlm_jax.diffusion.solvers import Denoise, EarlyStop, solve
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.dit import OBSERVED, KVCache
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.models.token_layout import TokenLayout
from ldlm_jax.parallel.sharding import replicate
from ldlm_jax.sampling.guided import Block, guided_estimate
from ldlm_jax.sampling.logits import likeliest, logits_processor
from ldlm_jax.sampling.rerank import log_likelihood
from ldlm_jax.sampling.spec import FULL, Branch, ConditioningBatch, Generated, Spec, Trace


@jit(static_argnames="spec")
def generate_tokens(
    params, latents: LatentStats, given: ConditioningBatch, rows: dict, *, spec: Spec
) -> Generated:
    """Denoise and decode one batch, of which no row depends on another.

    An outer scan runs over the blocks (a single one where whole texts are generated), an inner scan
    over the steps. A finished block is decoded and encoded again: the cache of later blocks is made
    of the latents of its tokens, as in training. A block in which no row has anything to generate
    costs nothing.

    Args:
      params: parameters.
      latents: statistics of the latent channels.
      given: what is given.
      rows: random keys and options of each row, see ``config.row_params``.
      spec: everything static.
    """
    sampler = BlockwiseSampler.create(params, latents, given, rows, spec)
    ended_B = jnp.zeros(len(given.tokens_BxL), bool)
    carry = given.tokens_BxL, sampler.first_caches(), ended_B
    blocks = jnp.arange(sampler.blocks)
    (tokens_BxL, *_), (steps_KxB, extra) = jax.lax.scan(sampler.next_block, carry, blocks)
    likelihood_B = sampler.likelihood(tokens_BxL)
    trace = None
    if spec.traced:  # both are (blocks, steps, B, tokens of a block)
        trace = Trace(*(x.transpose(2, 1, 0, 3).reshape(*x.shape[2:0:-1], -1) for x in extra))
    evaluations_B = jnp.sum(steps_KxB, 0) * spec.evaluations(rows)
    return jax.tree.map(replicate, Generated(tokens_BxL, evaluations_B, likelihood_B, trace))


class Problem(NamedTuple):
    """What a solver is given, see ``solvers.solve``, and what makes tokens of its solution."""

    denoise: Denoise
    start_BxSxD: jax.Array
    times_KxBxS: jax.Array
    keys_B: jax.Array
    early_stop: EarlyStop | None
    decode: Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class BlockwiseSampler:
    """All that stays the same while a batch is generated. Made inside the jitted function."""

    spec: Spec
    denoiser: Denoiser
    given: ConditioningBatch
    layout: TokenLayout
    rows: dict

    @classmethod
    def create(
        cls, params, latents: LatentStats, given: ConditioningBatch, rows: dict, spec: Spec
    ) -> "BlockwiseSampler":
        """That of a batch; arguments as of ``generate_tokens``."""
        chex.assert_equal_shape([given.tokens_BxL, given.segments_BxL, given.no_end_BxL])
        chex.assert_equal_shape_prefix([given.tokens_BxL, given.observed_BxN, *rows.values()], 1)
        networks, diffusion = spec.networks, spec.diffusion
        denoiser = Denoiser.create(networks, params, diffusion, latents)
        layout = latent_layout(given.segments_BxL, networks, diffusion, given.observed_BxN)
        return cls(spec, denoiser, given, layout, rows)

    @property
    def positions(self) -> int:
        """Latents of a row."""
        return self.given.observed_BxN.shape[1]

    @property
    def observed_BxL(self) -> jax.Array:
        """Which tokens are given."""
        return jnp.repeat(self.given.observed_BxN, self.tokens_per_latent, axis=1)

    @property
    def size(self) -> int:
        """Latents of a block."""
        return self.spec.diffusion.block_size or self.positions

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return self.positions // self.size

    @property
    def cached(self) -> int:
        """Latents in the cache."""
        return min(self.spec.cached_latents or self.positions, self.positions)

    @property
    def tokens_per_latent(self) -> int:
        """Tokens of a latent."""
        return self.spec.networks.vae.tokens_per_latent

    def encode(self, tokens_BxL, first) -> jax.Array:
        """Latents of as much text as is cached, from this position on."""
        count = self.tokens_per_latent
        return self.denoiser.encode(
            _slice(tokens_BxL, first * count, self.cached * count),
            self.layout.slice(first, self.cached),
            _slice(self.given.observed_BxN, first, self.cached),
        )

    def first_caches(self) -> dict[Branch, KVCache]:
        """Of all observed text, wherever it stands, with nothing generated yet.

        What else is in the cache here is overwritten before anything attends to it.
        """
        if self.blocks == 1:
            return {}
        z_BxRxD = self.encode(self.given.tokens_BxL, 0)
        layout = self.layout.slice(0, self.cached)
        observed_BxR = _slice(self.given.observed_BxN, 0, self.cached)

        def prefill(branch: Branch) -> KVCache:
            conditioning_BxR = jnp.where(observed_BxR, branch.conditioning, OBSERVED)
            return self.denoiser.prefill(
                z_BxRxD, conditioning_BxR, layout, window=branch.window
            ).cache

        return {branch: prefill(branch) for branch in self.spec.branches}

    def block(self, tokens_BxL, index, caches) -> Block:
        """The block of that number."""
        start, count = index * self.size, self.tokens_per_latent
        first = jnp.clip(start + self.size - self.cached, 0, self.positions - self.cached)

        def encode_whole(tokens_BxL):
            return _slice(self.encode(tokens_BxL, first), start - first, self.size)

        return Block(
            self.layout.slice(start, self.size),
            _slice(self.given.observed_BxN, start, self.size),
            encode_whole(tokens_BxL),
            _slice(self.given.no_end_BxL, start * count, self.size * count),
            caches,
            lambda new_BxT: encode_whole(_put(tokens_BxL, new_BxT, start * count)),
        )

    def problem(self, block: Block, index) -> "Problem":
        """What a solver has to do for the block of that number."""
        rows = self.rows | {"keys": row_keys(self.rows["keys"], index)}
        top_p_B = rows["top_p"] if "top_p" in self.spec.in_use else None
        process = logits_processor(rows["temperature"], top_p_B, block.no_end_BxT)
        denoiser = replace(self.denoiser, logits_processor=process)
        times_KxBxS = self.spec.times(block.observed_BxS.shape[1], rows)
        noise_BxSxD = row_noise(row_keys(rows["keys"], 0), block.given_BxSxD.shape[1:])
        # From pure noise, or from what is to be revised with noise on it.
        schedule = self.spec.solver.schedule
        return Problem(
            guided_estimate(denoiser, self.spec, block, rows),
            schedule.interpolate(block.given_BxSxD, noise_BxSxD, times_KxBxS[0]),
            jnp.where(block.observed_BxS, 0.0, times_KxBxS),
            row_keys(rows["keys"], 1),
            _early_stop(block, rows) if self.spec.early else None,
            partial(_decode, denoiser, block),
        )

    def generate_block(self, tokens_BxL, caches, index):
        """Its tokens, steps that each row took, and what else the solver kept."""
        problem = self.problem(self.block(tokens_BxL, index, caches), index)
        end, extra = solve(
            problem.denoise, problem.start_BxSxD, problem.times_KxBxS, problem.keys_B,
            self.spec.solver, problem.early_stop,
        )  # fmt: skip
        steps_B = jnp.minimum(end.steps_B, self.rows["steps"].astype(int))
        return problem.decode(end.at.z), steps_B, extra

    def likelihood(self, tokens_BxL) -> jax.Array:
        """Log-likelihood (B,) of finished texts if ``Spec.scored``, else zeros."""
        if not self.spec.scored:
            return jnp.zeros(len(tokens_BxL))
        keys_B = row_keys(self.rows["keys"], self.blocks)
        return log_likelihood(
            self.denoiser, tokens_BxL, self.layout, self.given.observed_BxN, keys_B
        )

    def next_block(self, carry, index):
        """Generate a block where there is something to generate; for a scan."""
        tokens_BxL, caches, ended_B = carry
        if caches:
            # The block before this one. The first has none, and attends to nothing of this.
            before = jnp.maximum(index - 1, 0)
            finished = self.block(tokens_BxL, before, caches)
            slot = before * self.size % self.cached
            caches = _update_caches(self.denoiser, finished, slot)
        to_generate_BxN = ~self.given.observed_BxN & self.layout.in_document_BxN
        here_BxS = _slice(to_generate_BxN, index * self.size, self.size)
        needed_B = jnp.any(here_BxS, axis=1) & ~ended_B
        arguments = tokens_BxL, caches, index
        blank = jax.eval_shape(self.generate_block, *arguments)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
        new_BxT, steps_B, extra = jax.lax.cond(
            jnp.any(needed_B), self.generate_block, lambda *_: blank, *arguments
        )
        T = new_BxT.shape[1]
        observed_BxT, old_BxT = (_slice(x, index * T, T) for x in (self.observed_BxL, tokens_BxL))
        new_BxT = jnp.where(observed_BxT, old_BxT, new_BxT)
        tokens_BxL = _put(tokens_BxL, new_BxT, index * T)
        ended_B |= jnp.any((new_BxT == EOS) & ~observed_BxT, axis=1)
        if self.spec.on_block:
            # Ordered callbacks need a single device; see ``stream.InOrder``.
            jax.debug.callback(self.spec.on_block, index, replicate(new_BxT))
        return (tokens_BxL, caches, ended_B), (jnp.where(needed_B, steps_B, 0), extra)


def _early_stop(block: Block, rows: dict) -> EarlyStop:
    """Stop once the tokens have stayed the same, all of them probable, for so many steps."""
    T = block.no_end_BxT.shape[1]
    watched_BxT = jnp.repeat(block.to_generate_BxS, T // block.observed_BxS.shape[1], axis=1)

    def update(state, tokens_and_confidence):
        before_BxT, count_B = state
        tokens_BxT, confidence_BxT = tokens_and_confidence
        sure_BxT = confidence_BxT >= rows["confidence"][:, None]
        stable_BxT = ((tokens_BxT == before_BxT) & sure_BxT) | ~watched_BxT
        count_B = jnp.where(jnp.all(stable_BxT, axis=1), count_B + 1, 0)
        wanted_B = rows["stable_steps"]
        return (tokens_BxT, count_B), (count_B >= wanted_B) & (wanted_B > 0)

    return EarlyStop((jnp.full(watched_BxT.shape, -1), jnp.zeros(len(watched_BxT), int)), update)


def _decode(denoiser: Denoiser, block: Block, z_BxSxD) -> jax.Array:
    """The likeliest tokens of the block."""
    sigma_BxS = jnp.zeros(block.observed_BxS.shape)
    logits = denoiser.decode(
        block.with_observed(z_BxSxD), sigma_BxS, block.layout, block.caches.get(FULL)
    )
    return likeliest(logits)[0]


def _update_caches(denoiser: Denoiser, block: Block, slot) -> dict[Branch, KVCache]:
    """The caches with a finished block in this slot, whatever was there."""

    def put(whole, own, axis):
        return jax.lax.dynamic_update_slice_in_dim(whole, own, slot, axis)

    updated = {}
    for branch, cache in block.caches.items():
        conditioning_BxS = jnp.where(block.observed_BxS, branch.conditioning, OBSERVED)
        new = denoiser.prefill(
            block.given_BxSxD, conditioning_BxS, block.layout, cache, branch.window
        ).cache
        updated[branch] = KVCache(
            jax.tree.map(partial(put, axis=2), cache.keys_and_values, new.keys_and_values),
            put(cache.features_BxRxM, new.features_BxRxM, axis=1),
            jax.tree.map(partial(put, axis=1), cache.layout, block.layout),
        )
    return updated


def _put(tokens_BxL, new_BxT, start) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(tokens_BxL, new_BxT, start, axis=1)


def _slice(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
