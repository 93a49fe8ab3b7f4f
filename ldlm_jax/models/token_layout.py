"""Where each position of a row stands: its document, its place in it, and its block.

Shape letters: B batch, N positions.
"""

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TokenLayout:
    """Document, position within it, and block within it, of every position; all int32 (B, N).

    Attributes:
      segment_ids_BxN: document number, 0 for empty space (which attends to itself alone).
      positions_BxN: position within the document.
      block_ids_BxN: block within the document, in the order in which they are read and generated;
        0 everywhere when a text is generated as a whole.
      block_size: positions of a block, 0 for whole texts. Documents begin at multiples of it
        (``data.pad_to_multiple`` sees to that), so that a row falls into blocks, too.
    """

    segment_ids_BxN: jax.Array
    positions_BxN: jax.Array
    block_ids_BxN: jax.Array
    block_size: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def in_document_BxN(self) -> jax.Array:
        """True for every position that is not empty space."""
        return self.segment_ids_BxN > 0

    def slice(self, start: jax.Array, size: int) -> "TokenLayout":
        """The layout of ``size`` positions from ``start`` on (which may be traced)."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), self)

    def of_tokens(self, tokens_per_latent: int) -> "TokenLayout":
        """The layout of the tokens, of which so many share a latent."""
        whole = jax.tree.map(lambda x: jnp.repeat(x, tokens_per_latent, axis=1), self)
        part_N = jnp.tile(jnp.arange(tokens_per_latent), self.positions_BxN.shape[1])
        return whole.replace(
            positions_BxN=whole.positions_BxN * tokens_per_latent + part_N,
            block_size=self.block_size * tokens_per_latent,
        )

    def by_block(self) -> "TokenLayout":
        """The blocks of all rows as rows of their own, (B * N / block_size, block_size)."""
        return jax.tree.map(lambda x: x.reshape(-1, self.block_size), self)


def positions_in(segments_BxN: jax.Array) -> jax.Array:
    """Position of each token within its document, int32 (B, N)."""
    index = jnp.broadcast_to(jnp.arange(segments_BxN.shape[1]), segments_BxN.shape)
    changes = segments_BxN[:, 1:] != segments_BxN[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def token_layout(
    segments_BxN: jax.Array, block_size: int = 0, first_BxN=None, single_B=None
) -> TokenLayout:
    """The layout of packed documents.

    Args:
      segments_BxN: document number, 0 for empty space.
      block_size: positions that are generated together, each after the blocks before it; 0
        generates whole documents together.
      first_BxN: true where text is read before anything is generated, wherever it stands: a block
        that is only partly so falls into two. None where observed text stands before all other.
      single_B: true for rows in which every position is a block of its own, within those of
        ``block_size``. None for no row.
    """
    positions_BxN = positions_in(segments_BxN)
    if not block_size:
        return TokenLayout(segments_BxN, positions_BxN, jnp.zeros_like(positions_BxN))
    block_ids_BxN = positions_BxN // block_size
    if single_B is not None:
        block_ids_BxN = jnp.where(single_B[:, None], positions_BxN, block_ids_BxN)
    if first_BxN is not None:
        block_ids_BxN -= jnp.where(first_BxN, segments_BxN.shape[1], 0)
    # Written down once: fused into the masks, the layout would be worked out anew for every pair
    # of positions, in every layer and again in its backward pass.
    layout = TokenLayout(segments_BxN, positions_BxN, block_ids_BxN, block_size)
    return jax.lax.optimization_barrier(layout)
