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


def positions_in_segments(segments_BxN: jax.Array) -> jax.Array:
    """Position of each place within its run of equal segment numbers, int32 (B, N)."""
    index = jnp.broadcast_to(jnp.arange(segments_BxN.shape[1]), segments_BxN.shape)
    starts = jnp.concatenate(
        [
            jnp.ones_like(segments_BxN[:, :1], bool),
            segments_BxN[:, 1:] != segments_BxN[:, :-1],
        ],
        axis=1,
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def places_to_write(segments_BxN: jax.Array, known_BxN: jax.Array) -> jax.Array:
    """Place of each unknown position among those of its document, 0 to 1, fp32 (B, N)."""
    unknown_BxN = ~known_BxN
    same_BxNxN = segments_BxN[:, :, None] == segments_BxN[:, None, :]
    to_write_BxNxN = same_BxNxN & unknown_BxN[:, None, :]
    index = jnp.arange(segments_BxN.shape[1])
    before_BxN = jnp.sum(to_write_BxNxN & (index[None, :] < index[:, None]), axis=-1)
    total_BxN = jnp.sum(to_write_BxNxN, axis=-1)
    return before_BxN / jnp.maximum(total_BxN - 1, 1)
