"""Attention by a TPU kernel that computes no tile which the mask leaves empty."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ldlm_jax.models.places import ALL, Places, Sight, in_sight
from ldlm_jax.models.scores import platform

# Rows are multiples of this; queries and keys that the kernel handles at once, the most first.
LANES = 128
_TILES = (512, 384, 256, LANES)


def fits(q_BxNxHxK, keys) -> bool:
    """Whether rows are whole: a sampler's single block is too short for the kernel."""
    return all(k.shape[1] == q_BxNxHxK.shape[1] for k in keys) and q_BxNxHxK.shape[1] % LANES == 0


def _static_mask(rule: str, places: Places, length: int) -> np.ndarray:
    """What a rule lets a row see (query, key), documents apart."""
    place = np.arange(length)
    block = place // (places.block_size or length)
    return in_sight(rule, block[:, None], block[None, :], place[:, None], place[None, :])


def _kernel(mask: np.ndarray, heads: int, sharing: int):
    """Attention of one row: queries (heads, N, K), keys and values of which ``sharing`` heads have
    one in common, and the segments of both."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    tile = next(size for size in _TILES if len(mask) % size == 0)
    sizes = kernels.BlockSizes(
        block_q=tile, block_kv=tile, block_kv_compute=tile, block_q_dkv=tile, block_kv_dkv=tile,
        block_kv_dkv_compute=tile, use_fused_bwd_kernel=True,
    )  # fmt: skip
    whole = masks.FullMask(mask.shape) if mask.all() else masks.NumpyMask(mask)
    make = (
        kernels.make_splash_mha_single_device
        if sharing == 1
        else kernels.make_splash_mqa_single_device
    )
    of_heads = make(
        masks.MultiHeadMask([whole] * (heads if sharing == 1 else sharing)), block_sizes=sizes,
        residual_checkpoint_name="attended", interpret=platform() == "cpu",
    )  # fmt: skip

    def of_row(q, k, v, *segments):
        segments = kernels.SegmentIds(*segments)
        if sharing == 1:
            return of_heads(q, k, v, segments)
        by_key = q.reshape(len(k), sharing, *q.shape[1:])
        attended = jax.vmap(partial(of_heads, segment_ids=segments))(by_key, k, v)
        return attended.reshape(q.shape)

    return of_row


def splash(q_BxNxHxK, keys, values, sight: Sight, offset_bias) -> jax.Array:
    """The TPU kernel, which computes no tile that the mask leaves empty.

    Each device runs it on its rows and heads; other backends interpret it (slowly, for tests).
    """
    if offset_bias is not None or ALL in sight.rules:
        raise ValueError(
            "attention 'splash' knows neither a bias by offset nor time tokens: set "
            "dit.offset_radius=0 and dit.time_tokens=0."
        )
    N, K = q_BxNxHxK.shape[1], q_BxNxHxK.shape[-1]
    mask = np.concatenate([_static_mask(rule, sight.query, N) for rule in sight.rules], axis=1)

    def of_device(q, keys, values, *segments):
        of_row = _kernel(mask, q.shape[2], q.shape[2] // keys.shape[2])
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q * K**-0.5, keys, values))
        return jax.vmap(of_row)(*heads_first, *segments).swapaxes(1, 2)

    inputs = (
        q_BxNxHxK,
        *(jnp.concatenate(parts, axis=1) for parts in (keys, values)),
        sight.query.segments_BxN,
        jnp.concatenate([part.segments_BxN for part in sight.keys], axis=1),
    )
    if jax.sharding.get_abstract_mesh().empty:
        return of_device(*inputs)
    rows = nn.logical_to_mesh_axes(("batch", None, "heads", None))
    of_rows = PartitionSpec(rows[0], None)
    return jax.shard_map(
        of_device, in_specs=(rows, rows, rows, of_rows, of_rows), out_specs=rows, check_vma=False
    )(*inputs)
