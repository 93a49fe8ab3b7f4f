"""The next-token prior: what the clean latent just before a position predicts of it.

The prefill of clean text may be trained to predict each next token (``losses.next_token``). Its
features at the latent before a position then are a prior for that position, to which the denoiser
adds what the noisy latents beside it tell.

Shape letters: B rows, N latents, R cached latents, M width, S positions of a block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.models.masks import PREVIOUS_BLOCKS, SAME_BLOCK, AttentionMask
from ldlm_jax.models.token_layout import TokenLayout


class PriorFeatures(NamedTuple):
    """Features of the clean latent just before each position.

    Attributes:
      features_BxNxM: the trunk's, zeros where there are none.
      has_prior_BxN: whether there are any.
      signal_BxN: how much the rest of the block can add, from 0 (nothing, it is noise) to 1.
      stale_BxN: whether observed text follows that the latent before has not attended to.
    """

    features_BxNxM: jax.Array
    has_prior_BxN: jax.Array
    signal_BxN: jax.Array
    stale_BxN: jax.Array

    def drop(self, key: jax.Array, keep: float) -> "PriorFeatures":
        """The same, kept for a share of the positions only."""
        kept_BxN = jax.random.bernoulli(key, keep, self.has_prior_BxN.shape)
        has_prior_BxN = self.has_prior_BxN & kept_BxN
        features_BxNxM = jnp.where(has_prior_BxN[..., None], self.features_BxNxM, 0.0)
        return self._replace(features_BxNxM=features_BxNxM, has_prior_BxN=has_prior_BxN)

    def combine(self, features_BxNxM: jax.Array, scale_M: jax.Array) -> jax.Array:
        """The trunk's features; where there is a prior, that and the signal beside it.

        The trunk's own are added by a scale that starts at zero (Bachlechner et al. 2020,
        "ReZero"), as far as there is signal; with a stale prior they are averaged.
        """
        scale_BxNxM = (scale_M * self.signal_BxN[..., None]).astype(features_BxNxM.dtype)
        with_prior_BxNxM = self.features_BxNxM + features_BxNxM * scale_BxNxM
        # An average of logits: one is learned better, the other has seen both sides.
        mean_BxNxM = (features_BxNxM + self.features_BxNxM) / 2
        with_prior_BxNxM = jnp.where(self.stale_BxN[..., None], mean_BxNxM, with_prior_BxNxM)
        return jnp.where(self.has_prior_BxN[..., None], with_prior_BxNxM, features_BxNxM)


def previous_latent(layout: TokenLayout, cached: TokenLayout) -> tuple[jax.Array, ...]:
    """The cached position of an earlier block that stands just before each position.

    Returns:
      Its index (B, N) among the cached ones; whether there is one, bool (B, N); and whether
      something is cached after the position to which it has not attended.
    """
    earlier = AttentionMask(layout, (cached,), (PREVIOUS_BLOCKS,))
    mask_BxNxR, offset_BxNxR = earlier.dense_BxQxK, earlier.offset_BxQxK
    beside_BxNxR = mask_BxNxR & (offset_BxNxR == -1)
    index_BxN = jnp.argmax(beside_BxNxR, axis=-1)
    block_BxN = jnp.take_along_axis(cached.block_ids_BxN, index_BxN, axis=1)
    later_BxNxR = cached.block_ids_BxN[:, None, :] >= block_BxN[:, :, None]
    stale_BxN = jnp.any(mask_BxNxR & (offset_BxNxR > 0) & later_BxNxR, axis=-1)
    return index_BxN, jnp.any(beside_BxNxR, axis=-1), stale_BxN


def largest_of_others(layout: TokenLayout, value_BxN: jax.Array) -> jax.Array:
    """The largest value (B, N) at another position of the same block; 0 for a block of one."""
    by_block = layout.by_block()
    others_BxSxS = AttentionMask(by_block, (by_block,), (SAME_BLOCK,)).dense_BxQxK
    others_BxSxS &= ~jnp.eye(layout.block_size, dtype=bool)
    values_Bx1xS = value_BxN.reshape(-1, 1, layout.block_size)
    return jnp.max(jnp.where(others_BxSxS, values_Bx1xS, 0), axis=-1).reshape(value_BxN.shape)


def gather_prior(layout: TokenLayout, cache, alpha_BxN: jax.Array) -> PriorFeatures:
    """The prior of each position out of a ``KVCache``.

    Args:
      layout: of the positions.
      cache: of the clean text.
      alpha_BxN: how much of the data is left in each noisy latent.
    """
    index_BxN, has_prior_BxN, stale_BxN = previous_latent(layout, cache.layout)
    features_BxNxM = jnp.take_along_axis(cache.features_BxRxM, index_BxN[..., None], axis=1)
    features_BxNxM = jnp.where(has_prior_BxN[..., None], features_BxNxM, 0.0)
    signal_BxN = largest_of_others(layout, alpha_BxN)
    return PriorFeatures(features_BxNxM, has_prior_BxN, signal_BxN, stale_BxN)
