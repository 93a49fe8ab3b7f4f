"""What is known and what is to be written: the parts of a document that training hides.

Known positions carry their clean latent and time 0; the rest carries the running time. Prompts,
infilling and revision are all of this one kind.
"""

import jax
import jax.numpy as jnp


def draw_known(
    key: jax.Array,
    segments_BxN: jax.Array,
    positions_BxN: jax.Array,
    *,
    prefix: float,
    infill: float,
) -> jax.Array:
    """Draw for each document which of its positions are known.

    Args:
      key: random key.
      segments_BxN: document number, 0 for empty space.
      positions_BxN: position within the document.
      prefix: share of documents of which a prefix of uniform length is known.
      infill: share of documents of which all but one span is known.

    Returns:
      bool (B, N). Every document keeps at least one unknown position.
    """
    same_BxNxN = segments_BxN[:, :, None] == segments_BxN[:, None, :]
    length_BxN = jnp.sum(same_BxNxN, axis=-1)
    # One draw a document: indexed by its number, so that all its positions agree.
    draws = jax.random.uniform(key, (3, segments_BxN.shape[0], segments_BxN.shape[1] + 1))
    kind, a, b = (jnp.take_along_axis(u, segments_BxN, axis=1) for u in draws)
    begin = jnp.floor(jnp.minimum(a, b) * length_BxN)
    end = jnp.floor(jnp.maximum(a, b) * length_BxN) + 1
    before_hole = positions_BxN < jnp.floor(a * length_BxN)
    around_hole = (positions_BxN < begin) | (positions_BxN >= end)
    known = jnp.where(kind < prefix, before_hole, (kind < prefix + infill) & around_hole)
    return known & (segments_BxN > 0)
