"""Which keys a query attends to, as rules that kernels can read and a dense mask for the others.

Shape letters: B batch, Q queries, K keys.
"""

import flax
import jax
import jax.numpy as jnp

from ldlm_jax.models.token_layout import TokenLayout

# What a query attends to of a part of the keys, within its own document: blocks up to its own,
# blocks before it, its own block; or blocks before it and of its own those positions up to itself.
# ALL is whatever the document.
BLOCK_CAUSAL, PREVIOUS_BLOCKS, SAME_BLOCK = "block_causal", "previous_blocks", "same_block"
CAUSAL, ALL = "causal", "all"


def attends(rule: str, query_block, key_block, query_position, key_position):
    """Whether queries attend to keys of their document: from the blocks and positions of both."""
    rules = {
        BLOCK_CAUSAL: lambda: key_block <= query_block,
        PREVIOUS_BLOCKS: lambda: key_block < query_block,
        SAME_BLOCK: lambda: key_block == query_block,
        CAUSAL: lambda: (
            (key_block < query_block)
            | ((key_block == query_block) & (key_position <= query_position))
        ),
    }
    return rules[rule]()


def same_document(query_BxQ: jax.Array, key_BxK: jax.Array) -> jax.Array:
    """True (B, Q, K) where query and key have the same segment number."""
    return query_BxQ[:, :, None] == key_BxK[:, None, :]


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query attends to. The keys come in parts, each with a rule of its own.

    Attributes:
      query: layout of the queries.
      keys: layout of the keys, part by part.
      rules: for each part one of ``BLOCK_CAUSAL``, ``PREVIOUS_BLOCKS``, ``SAME_BLOCK``, ``CAUSAL``
        and ``ALL``.
      window: how many positions away a query attends at most; None for any number.
    """

    query: TokenLayout
    keys: tuple[TokenLayout, ...]
    rules: tuple[str, ...] = flax.struct.field(pytree_node=False)
    window: int | None = flax.struct.field(pytree_node=False, default=None)

    def part(self, index: int) -> "AttentionMask":
        """One part of the keys."""
        return self.replace(keys=(self.keys[index],), rules=(self.rules[index],))

    @property
    def dense_BxQxK(self) -> jax.Array:
        """True where the query attends to the key."""
        query, masks = self.query, []
        for key, rule in zip(self.keys, self.rules, strict=True):
            same = same_document(query.segment_ids_BxN, key.segment_ids_BxN)
            if rule == ALL:
                masks.append(jnp.ones_like(same))
                continue
            seen = attends(
                rule, query.block_ids_BxN[:, :, None], key.block_ids_BxN[:, None, :],
                query.positions_BxN[:, :, None], key.positions_BxN[:, None, :],
            )  # fmt: skip
            masks.append(same & seen)
        dense_BxQxK = jnp.concatenate(masks, axis=-1)
        if self.window is None:
            return dense_BxQxK
        return dense_BxQxK & (jnp.abs(self.offset_BxQxK) <= self.window)

    @property
    def offset_BxQxK(self) -> jax.Array:
        """Position of the key minus that of the query, int32."""
        keys_BxK = jnp.concatenate([key.positions_BxN for key in self.keys], axis=-1)
        return keys_BxK[:, None, :] - self.query.positions_BxN[:, :, None]


def block_causal(layout: TokenLayout) -> AttentionMask:
    """Positions of the same document, in the same block or an earlier one."""
    return AttentionMask(layout, (layout,), (BLOCK_CAUSAL,))


def denoising_mask(layout: TokenLayout, cached: TokenLayout | None = None) -> AttentionMask:
    """For noisy latents: cached positions of earlier blocks, then the own block.

    Without a cache, everything up to the own block.
    """
    if cached is None:
        return block_causal(layout)
    return AttentionMask(layout, (cached, layout), (PREVIOUS_BLOCKS, SAME_BLOCK))


def prefill_mask(layout: TokenLayout, cached: TokenLayout | None = None) -> AttentionMask:
    """For clean latents: cached positions of earlier blocks, if any, and the own ones up to each.

    Each clean latent attends to those before it alone, also within its block: its features predict
    the next latent, and the cache is the same in whatever blocks a text is generated.
    """
    if cached is None:
        return AttentionMask(layout, (layout,), (CAUSAL,))
    return AttentionMask(layout, (cached, layout), (PREVIOUS_BLOCKS, CAUSAL))


def with_front(mask: AttentionMask, count: int) -> AttentionMask:
    """The same with ``count`` more positions in front, to which every position attends.

    They attend to one another alone: through anything else, packed documents would meet.
    """
    blank = jnp.zeros((mask.query.segment_ids_BxN.shape[0], count), jnp.int32)
    front = TokenLayout(blank - 1, blank, blank)
    query = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), front, mask.query.replace(block_size=0)
    )
    return AttentionMask(query, (front, *mask.keys), (ALL, *mask.rules))
