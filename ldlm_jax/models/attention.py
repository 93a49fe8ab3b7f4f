"""Attention arithmetic: rotary positions, masks, and the scaled dot product."""

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


def same_segment(segments_BxN: jax.Array, known_BxN: jax.Array | None = None) -> jax.Array:
    """Who may see whom: positions of one document and, if given, of one side of ``known``.

    Args:
      segments_BxN: document number, 0 for empty space (which sees only itself).
      known_BxN: true where the text is given. With it, known and unknown positions do not see each
        other, so that the latent of a known text holds nothing of the text to be written.

    Returns:
      bool (B, N, N).
    """
    mask_BxNxN = segments_BxN[:, :, None] == segments_BxN[:, None, :]
    if known_BxN is not None:
        mask_BxNxN &= known_BxN[:, :, None] == known_BxN[:, None, :]
    return mask_BxNxN


def attend(q_BxNxHxK, k_BxNxHxK, v_BxNxHxK, mask_BxNxN) -> jax.Array:
    """Scaled dot-product attention with the softmax in fp32; every query needs a visible key."""
    return jax.nn.dot_product_attention(q_BxNxHxK, k_BxNxHxK, v_BxNxHxK, mask=mask_BxNxN[:, None])
