"""Where each position of a row stands, and who may see whom.

Shape letters: B batch, N positions, Q queries, K keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
    """Document, position within it, and block within it, of every position; all int32 (B, N).

    Attributes:
      segments_BxN: document number, 0 for empty space (which sees only itself).
      positions_BxN: position within the document.
      blocks_BxN: block within the document; 0 everywhere when a text is written as a whole.
    """

    segments_BxN: jax.Array
    positions_BxN: jax.Array
    blocks_BxN: jax.Array

    def cut(self, start: jax.Array, size: int) -> "Places":
        """The places of ``size`` positions from ``start`` on (which may be traced)."""
        return Places(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in self))


def lay_out(segments_BxN: jax.Array, block_size: int = 0) -> Places:
    """The places of packed documents.

    Args:
      segments_BxN: document number, 0 for empty space.
      block_size: positions that are written together, each after the blocks before it; 0 writes
        whole documents together.
    """
    index = jnp.broadcast_to(jnp.arange(segments_BxN.shape[1]), segments_BxN.shape)
    starts = jnp.concatenate(
        [
            jnp.ones_like(segments_BxN[:, :1], bool),
            segments_BxN[:, 1:] != segments_BxN[:, :-1],
        ],
        axis=1,
    )
    positions_BxN = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    blocks_BxN = positions_BxN // block_size if block_size else jnp.zeros_like(positions_BxN)
    return Places(segments_BxN, positions_BxN, blocks_BxN)


class Sight(NamedTuple):
    """Who sees whom, and how far away it is.

    Attributes:
      mask_BxQxK: true where the query sees the key.
      offset_BxQxK: position of the key minus that of the query, int32.
    """

    mask_BxQxK: jax.Array
    offset_BxQxK: jax.Array

    def beside(self, other: "Sight") -> "Sight":
        """The keys of both, these first."""
        return Sight(*(jnp.concatenate(pair, axis=-1) for pair in zip(self, other, strict=True)))


def see_up_to_block(query: Places, key: Places) -> Sight:
    """Positions of the same document, in the same block or an earlier one."""
    return _see(query, key, lambda of_key, of_query: of_key <= of_query)


def see_earlier_blocks(query: Places, key: Places) -> Sight:
    """Positions of the same document in an earlier block."""
    return _see(query, key, lambda of_key, of_query: of_key < of_query)


def see_own_block(query: Places, key: Places) -> Sight:
    """Positions of the same document in the same block."""
    return _see(query, key, lambda of_key, of_query: of_key == of_query)


def _see(query: Places, key: Places, rule) -> Sight:
    same = query.segments_BxN[:, :, None] == key.segments_BxN[:, None, :]
    blocks = rule(key.blocks_BxN[:, None, :], query.blocks_BxN[:, :, None])
    return Sight(same & blocks, key.positions_BxN[:, None, :] - query.positions_BxN[:, :, None])
