"""Attention arithmetic: rotary positions and the scaled dot product."""

import jax
import jax.numpy as jnp


def rotate(x_BxNxHxK: jax.Array, positions_BxN: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding, halves rotated against each other (Su et al. 2021).

    Args:
      x_BxNxHxK: queries or keys; K must be even.
      positions_BxN: integer positions.
      base: wavelength base.
    """
    half = x_BxNxHxK.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BxN[:, :, None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x_BxNxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x_BxNxHxK.dtype)


def attend(q_BxNxHxK, k_BxNxHxK, v_BxNxHxK, mask_BxNxN) -> jax.Array:
    """Scaled dot-product attention with the softmax in fp32; every query needs a visible key."""
    return jax.nn.dot_product_attention(q_BxNxHxK, k_BxNxHxK, v_BxNxHxK, mask=mask_BxNxN[:, None])
