"""Where each position of a row stands, and who may see whom.

Shape letters: B batch, N positions, Q queries, K keys.
"""

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Places:
    """Document, position within it, and block within it, of every position; all int32 (B, N).

    Attributes:
      segments_BxN: document number, 0 for empty space (which sees only itself).
      positions_BxN: position within the document.
      blocks_BxN: block within the document, in the order in which they are read and written; 0
        everywhere when a text is written as a whole.
      block_size: positions of a block, 0 for whole texts. Documents begin at multiples of it
        (``data.round_to`` sees to that), so that a row falls into blocks, too.
    """

    segments_BxN: jax.Array
    positions_BxN: jax.Array
    blocks_BxN: jax.Array
    block_size: int = flax.struct.field(pytree_node=False, default=0)

    def cut(self, start: jax.Array, size: int) -> "Places":
        """The places of ``size`` positions from ``start`` on (which may be traced)."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), self)

    def of_parts(self, count: int) -> "Places":
        """The places of ``count`` parts of each position, such as the tokens of a latent."""
        whole = jax.tree.map(lambda x: jnp.repeat(x, count, axis=1), self)
        part_N = jnp.tile(jnp.arange(count), self.positions_BxN.shape[1])
        return whole.replace(
            positions_BxN=whole.positions_BxN * count + part_N, block_size=self.block_size * count
        )

    def by_block(self) -> "Places":
        """The blocks of all rows as rows of their own, (B * N / block_size, block_size)."""
        return jax.tree.map(lambda x: x.reshape(-1, self.block_size), self)


def positions_of(segments_BxN: jax.Array) -> jax.Array:
    """Position of each place within its document, int32 (B, N)."""
    index = jnp.broadcast_to(jnp.arange(segments_BxN.shape[1]), segments_BxN.shape)
    starts = jnp.concatenate(
        [
            jnp.ones_like(segments_BxN[:, :1], bool),
            segments_BxN[:, 1:] != segments_BxN[:, :-1],
        ],
        axis=1,
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def lay_out(segments_BxN: jax.Array, block_size: int = 0, first_BxN=None, single_B=None) -> Places:
    """The places of packed documents.

    Args:
      segments_BxN: document number, 0 for empty space.
      block_size: positions that are written together, each after the blocks before it; 0 writes
        whole documents together.
      first_BxN: true where text is read before anything is written, wherever it stands: a block
        that is only partly so falls into two. None where known text stands before all other.
      single_B: true for rows in which every position is a block of its own, within those of
        ``block_size``. None for no row.
    """
    positions_BxN = positions_of(segments_BxN)
    if not block_size:
        return Places(segments_BxN, positions_BxN, jnp.zeros_like(positions_BxN))
    blocks_BxN = positions_BxN // block_size
    if single_B is not None:
        blocks_BxN = jnp.where(single_B[:, None], positions_BxN, blocks_BxN)
    if first_BxN is not None:
        blocks_BxN -= jnp.where(first_BxN, segments_BxN.shape[1], 0)
    # Written down once: fused into the masks, where they stand would be worked out anew for every
    # pair of positions, in every layer and again in its backward pass.
    places = Places(segments_BxN, positions_BxN, blocks_BxN, block_size)
    return jax.lax.optimization_barrier(places)


# What a query may see of a part of the keys, within its own document.
UP_TO, EARLIER, OWN, READ, ALL = "up to", "earlier", "own", "read", "all"


def in_sight(rule: str, block, other, place, other_place):
    """Whether queries see keys of their document: from the blocks and positions of the two."""
    rules = {
        UP_TO: lambda: other <= block,
        EARLIER: lambda: other < block,
        OWN: lambda: other == block,
        READ: lambda: (other < block) | ((other == block) & (other_place <= place)),
    }
    return rules[rule]()


@flax.struct.dataclass
class Sight:
    """Who sees whom. The keys come in parts, each with a rule of its own.

    Attributes:
      query: places of the queries.
      keys: places of the keys, part by part.
      rules: for each part, which of its keys a query sees: those of the same document in blocks
        ``UP_TO`` its own, in ``EARLIER`` ones, in its ``OWN``; in earlier ones and, of its own, up
        to itself, as clean text is ``READ``; or ``ALL``, whatever the document.
      reach: how many positions away a query sees at most; None for any number.
    """

    query: Places
    keys: tuple[Places, ...]
    rules: tuple[str, ...] = flax.struct.field(pytree_node=False)
    reach: int | None = flax.struct.field(pytree_node=False, default=None)

    def part(self, index: int) -> "Sight":
        """One part of the keys."""
        return self.replace(keys=(self.keys[index],), rules=(self.rules[index],))

    @property
    def mask_BxQxK(self) -> jax.Array:
        """True where the query sees the key."""
        query, masks = self.query, []
        for key, rule in zip(self.keys, self.rules, strict=True):
            same = query.segments_BxN[:, :, None] == key.segments_BxN[:, None, :]
            if rule == ALL:
                masks.append(jnp.ones_like(same))
                continue
            seen = in_sight(
                rule, query.blocks_BxN[:, :, None], key.blocks_BxN[:, None, :],
                query.positions_BxN[:, :, None], key.positions_BxN[:, None, :],
            )  # fmt: skip
            masks.append(same & seen)
        mask_BxQxK = jnp.concatenate(masks, axis=-1)
        if self.reach is None:
            return mask_BxQxK
        return mask_BxQxK & (jnp.abs(self.offset_BxQxK) <= self.reach)

    @property
    def offset_BxQxK(self) -> jax.Array:
        """Position of the key minus that of the query, int32."""
        keys_BxK = jnp.concatenate([key.positions_BxN for key in self.keys], axis=-1)
        return keys_BxK[:, None, :] - self.query.positions_BxN[:, :, None]


def just_before(places: Places, remembered: Places) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which remembered position of an earlier block stands next to each on its left.

    Returns:
      Its index (B, N) among the remembered ones; whether there is one, bool (B, N); and whether
      something is remembered after the position that it has not read.
    """
    earlier = Sight(places, (remembered,), (EARLIER,))
    mask_BxNxR, offset_BxNxR = earlier.mask_BxQxK, earlier.offset_BxQxK
    beside_BxNxR = mask_BxNxR & (offset_BxNxR == -1)
    index_BxN = jnp.argmax(beside_BxNxR, axis=-1)
    block_BxN = jnp.take_along_axis(remembered.blocks_BxN, index_BxN, axis=1)
    unread_BxNxR = remembered.blocks_BxN[:, None, :] >= block_BxN[:, :, None]
    blind_BxN = jnp.any(mask_BxNxR & (offset_BxNxR > 0) & unread_BxNxR, axis=-1)
    return index_BxN, jnp.any(beside_BxNxR, axis=-1), blind_BxN


def largest_beside(places: Places, value_BxN: jax.Array) -> jax.Array:
    """The largest value (B, N) at another position of the same block; 0 for a block of one."""
    by_block = places.by_block()
    beside_BxSxS = Sight(by_block, (by_block,), (OWN,)).mask_BxQxK
    beside_BxSxS &= ~jnp.eye(places.block_size, dtype=bool)
    values_Bx1xS = value_BxN.reshape(-1, 1, places.block_size)
    return jnp.max(jnp.where(beside_BxSxS, values_Bx1xS, 0), axis=-1).reshape(value_BxN.shape)


def see_up_to_block(places: Places) -> Sight:
    """Positions of the same document, in the same block or an earlier one."""
    return Sight(places, (places,), (UP_TO,))


def see_memory_and_own_block(places: Places, remembered: Places) -> Sight:
    """Remembered positions of earlier blocks, then the positions of the own block."""
    return Sight(places, (remembered, places), (EARLIER, OWN))


def see_what_is_read(places: Places, remembered: Places | None = None) -> Sight:
    """Remembered positions of earlier blocks, if any, and the own ones up to each."""
    if remembered is None:
        return Sight(places, (places,), (READ,))
    return Sight(places, (remembered, places), (EARLIER, READ))
