"""Attention scores with mask and bias, written out.

Shape letters: B batch, N positions (queries), R positions (keys), H heads, K head width.
"""

import jax
import jax.numpy as jnp

from ldlm_jax.models.masks import AttentionMask

# A score that a softmax in fp32 takes for nothing, and whose differences are still finite.
MASKED = -1e30


def offset_scores(mask: AttentionMask, offset_bias: jax.Array | None) -> jax.Array | None:
    """What the offset adds to each score, (B, H, N, R); see ``attention.attend``."""
    if offset_bias is None:
        return None
    radius = offset_bias.shape[1] // 2
    index = jnp.clip(mask.offset_BxQxK, -radius, radius) + radius
    return jnp.swapaxes(jnp.take(offset_bias, index, axis=1), 0, 1)


def masked_scores(q_BxNxHxK, k_BxRxHxK, mask: AttentionMask, offset_bias) -> jax.Array:
    """(B, H, N, R), fp32, with masked keys far below everything."""
    scale = q_BxNxHxK.shape[-1] ** -0.5
    scores = scale * jnp.einsum(
        "bnhk,brhk->bhnr", q_BxNxHxK, k_BxRxHxK, preferred_element_type=jnp.float32
    )
    bias = offset_scores(mask, offset_bias)
    if bias is not None:
        scores += bias
    return jnp.where(mask.dense_BxQxK[:, None], scores, MASKED)
