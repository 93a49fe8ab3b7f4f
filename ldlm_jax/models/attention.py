"""Attention arithmetic: rotary positions and the scaled dot product."""

import jax
import jax.numpy as jnp


def rotary_frequencies(head_dim: int, base: float = 10_000.0) -> jax.Array:
    """Radians a position (head_dim / 2,) of Su et al. 2021 for a wavelength base; fp32."""
    half = head_dim // 2
    return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotate(x_BxNxHxK: jax.Array, positions_BxN: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding, halves rotated against each other (Su et al. 2021).

    Args:
      x_BxNxHxK: queries or keys; K must be even.
      positions_BxN: integer positions.
      frequencies: (K / 2,), see ``rotary_frequencies``.
    """
    angle = positions_BxN[:, :, None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x_BxNxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x_BxNxHxK.dtype)


def attend(q_BxNxHxK, k_BxMxHxK, v_BxMxHxK, mask_BxNxM, bias_BxHxNxM=None) -> jax.Array:
    """Scaled dot-product attention with the softmax in fp32; every query needs a visible key."""
    return jax.nn.dot_product_attention(
        q_BxNxHxK, k_BxMxHxK, v_BxMxHxK, bias=bias_BxHxNxM, mask=mask_BxNxM[:, None]
    )


def look_near(key, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Initial bias (heads, 2 R + 1) by offset: each head of the first few favours one neighbour.

    The first head looks at the position before, the next at the one after, then at two before, two
    after, and so on as far as R reaches; the last head of several favours none. A model that has
    few steps to learn in need not find its neighbours first.
    """
    del key  # nothing here is random
    heads, radius = shape[0], shape[1] // 2
    bias = jnp.zeros(shape, dtype)
    for head in range(max(1, heads - 1)):
        offset = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
        if abs(offset) < radius:
            bias = bias.at[head, radius + offset].set(4.0)
    return bias
