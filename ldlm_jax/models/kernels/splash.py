"""Attention by a TPU kernel that computes no tile which the mask leaves empty."""

import operator
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ldlm_jax.models.lowering import platform
from ldlm_jax.models.masks import (
    ALL,
    BLOCK_CAUSAL,
    CAUSAL,
    PREVIOUS_BLOCKS,
    SAME_BLOCK,
    AttentionMask,
)
from ldlm_jax.models.token_layout import TokenLayout, positions_in

# Rows are multiples of this; queries and keys that the kernel handles at once, the most first.
LANES = 128
_TILES = (512, 384, 256, LANES)
_BITS = 15  # of a place in its row


def fits(q_BxNxHxK, keys) -> bool:
    """Whether rows are whole: a sampler's single block is too short for the kernel."""
    return all(k.shape[1] == q_BxNxHxK.shape[1] for k in keys) and q_BxNxHxK.shape[1] % LANES == 0


def _span(rules: tuple[str, ...], place, start, end):
    """Where queries' blocks begin and end, as one number each; of clean text the end is the
    query itself."""
    return (start << _BITS) + (place + 1 if CAUSAL in rules else end)


def _spans(layout: TokenLayout, rules: tuple[str, ...]) -> jax.Array:
    """The span of every query (B, N), int32, which may differ by row."""
    place_N = jnp.arange(layout.block_ids_BxN.shape[1])
    # Of blocks alone: a document's positions need not lie together, and the kernel knows segments.
    start_BxN = place_N - positions_in(layout.block_ids_BxN)
    end_BxN = place_N + 1 + positions_in(layout.block_ids_BxN[:, ::-1])[:, ::-1]
    return _span(rules, place_N, start_BxN, end_BxN)


def _attends(rules: tuple[str, ...], length: int):
    """Whether a query attends to a key, from its span and the key's place among all parts."""
    seen = {
        BLOCK_CAUSAL: lambda place, start, end: place < end,
        CAUSAL: lambda place, start, end: place < end,
        PREVIOUS_BLOCKS: lambda place, start, end: place < start,
        SAME_BLOCK: lambda place, start, end: (place >= start) & (place < end),
    }

    def sees(span, key):
        start, end = span >> _BITS, span & ((1 << _BITS) - 1)
        parts = [
            (key >= i * length) & seen[rule](key - i * length, start, end)
            for i, rule in enumerate(rules)
        ]
        return reduce(operator.or_, parts)

    return sees


def _kernel(rules: tuple[str, ...], length: int, block_size: int, heads: int, sharing: int):
    """Attention of one row: queries (heads, N, K), keys and values of which ``sharing`` heads have
    one in common, the segments of both, and the queries' spans.

    Which tiles are computed at all is known beforehand, from the size of a block.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as splash_masks,
    )

    class InBlocks(splash_masks._ComputableMask):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    place, size = np.arange(length, dtype=np.int32), block_size or length
    start = place // size * size
    tiles = InBlocks((length, length * len(rules)), _attends(rules, length))
    tiles.q_sequence = _span(rules, place, start, start + size)
    tile = next(size for size in _TILES if length % size == 0)
    sizes = kernels.BlockSizes(
        block_q=tile, block_kv=tile, block_kv_compute=tile, block_q_dkv=tile, block_kv_dkv=tile,
        block_kv_dkv_compute=tile, use_fused_bwd_kernel=True,
    )  # fmt: skip
    make = (
        kernels.make_splash_mha_single_device
        if sharing == 1
        else kernels.make_splash_mqa_single_device
    )
    made = make(
        splash_masks.MultiHeadMask([tiles] * (heads if sharing == 1 else sharing)),
        block_sizes=sizes, residual_checkpoint_name="attended",
        interpret=platform() == "cpu",
    )  # fmt: skip

    def of_row(q, k, v, query_segments, key_segments, span):
        forward, backward = (
            info._replace(q_sequence=span) for info in (made.fwd_mask_info, made.dkv_mask_info)
        )
        of_heads = kernels.SplashAttentionKernel(forward, None, backward, **made.kwargs)
        segments = kernels.SegmentIds(query_segments, key_segments)
        if sharing == 1:
            return of_heads(q, k, v, segments)
        by_key = q.reshape(len(k), sharing, *q.shape[1:])
        attended = jax.vmap(partial(of_heads, segment_ids=segments))(by_key, k, v)
        return attended.reshape(q.shape)

    return of_row


def splash(q_BxNxHxK, keys, values, mask: AttentionMask, offset_bias) -> jax.Array:
    """The TPU kernel, which computes no tile that the mask leaves empty.

    Each device runs it on its rows and heads; other backends interpret it (slowly, for tests).
    """
    if offset_bias is not None or ALL in mask.rules:
        raise ValueError(
            "attention 'splash' takes neither a bias by offset nor time tokens: set "
            "dit.offset_radius=0 and dit.time_tokens=0."
        )
    N, K = q_BxNxHxK.shape[1], q_BxNxHxK.shape[-1]

    def of_device(q, keys, values, *of_layout):
        sharing = q.shape[2] // keys.shape[2]
        of_row = _kernel(mask.rules, N, mask.query.block_size, q.shape[2], sharing)
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q * K**-0.5, keys, values))
        return jax.vmap(of_row)(*heads_first, *of_layout).swapaxes(1, 2)

    inputs = (
        q_BxNxHxK,
        *(jnp.concatenate(parts, axis=1) for parts in (keys, values)),
        mask.query.segment_ids_BxN,
        jnp.concatenate([part.segment_ids_BxN for part in mask.keys], axis=1),
        _spans(mask.query, mask.rules),
    )
    if jax.sharding.get_abstract_mesh().empty:
        return of_device(*inputs)
    rows = nn.logical_to_mesh_axes(("batch", None, "heads", None))
    of_rows = PartitionSpec(rows[0], None)
    return jax.shard_map(
        of_device,
        in_specs=(rows, rows, rows, of_rows, of_rows, of_rows),
        out_specs=rows,
        check_vma=False,
    )(*inputs)
