"""Attention arithmetic: rotary positions, the scaled dot product, and its implementations.

Shape letters: B batch, N positions (queries), R positions (keys), H heads, K head width, G key
heads, S positions of a block.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.models.kernels.ring import ring, ring_axis
from ldlm_jax.models.kernels.scores import masked_scores, offset_scores
from ldlm_jax.models.kernels.splash import fits, splash
from ldlm_jax.models.lowering import constrain, platform
from ldlm_jax.models.masks import SAME_BLOCK, AttentionMask

# xla: the compiler's own, everywhere. cudnn: NVIDIA's fused kernel. splash: a Pallas kernel for
# TPUs, which skips what is masked. ring: for rows that are split over the devices of a mesh axis.
IMPLEMENTATIONS = ("xla", "cudnn", "splash", "ring")


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
    K = x_BxNxHxK.shape[-1]
    if platform() == "gpu":
        swapped = jnp.roll(x_BxNxHxK, K // 2, axis=-1)
    else:
        # A product with a permutation swaps the halves: cut apart, they would half fill the lanes
        # of a TPU. It is exact, as each output is one input.
        swap = jnp.roll(jnp.eye(K, dtype=x_BxNxHxK.dtype), K // 2, axis=0)
        swapped = jnp.matmul(x_BxNxHxK, swap, precision=jax.lax.Precision.HIGHEST)
    rotated = x_BxNxHxK * jnp.concatenate([cos, cos], axis=-1)
    rotated += swapped * jnp.concatenate([-sin, sin], axis=-1)
    return rotated.astype(x_BxNxHxK.dtype)


def neighbour_bias(key, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Initial bias (heads, 2 R + 1) by offset: each of the first few heads favours one neighbour.

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


def masked_attention(
    q_BxNxHxK, k_BxRxGxK, v_BxRxGxK, mask_BxNxR, bias_BxHxNxR=None, implementation="xla"
) -> jax.Array:
    """Scaled dot-product attention in fp32; every query needs a key that is not masked."""
    return jax.nn.dot_product_attention(
        q_BxNxHxK, k_BxRxGxK, v_BxRxGxK, bias=bias_BxHxNxR, mask=mask_BxNxR[:, None],
        implementation=implementation,
    )  # fmt: skip


def cudnn_fits(q_BxNxHxK: jax.Array, keys: tuple[jax.Array, ...]) -> bool:
    """Whether NVIDIA's kernel takes such arrays: 16 bits, even lengths, heads in multiples of 8."""
    lengths = q_BxNxHxK.shape[1], sum(part.shape[1] for part in keys)
    even = all(length % 2 == 0 for length in lengths)
    return q_BxNxHxK.dtype == jnp.bfloat16 and even and q_BxNxHxK.shape[-1] % 8 == 0


def attend(
    q_BxNxHxK: jax.Array,
    keys: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    mask: AttentionMask,
    offset_bias: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Attend to the parts of the keys that a mask allows, under one softmax.

    Args:
      q_BxNxHxK: queries.
      keys: (B, R, H, K) for each part of ``mask``.
      values: likewise.
      mask: which keys each query attends to, at least one.
      offset_bias: bias (H, 2 R + 1) by offset, the ends standing for all beyond; None for none.
      implementation: one of ``IMPLEMENTATIONS``, which agree up to rounding. So that a run can be
        sampled anywhere, ``"xla"`` stands in: for ``"splash"`` on GPUs and where rows are too short
        for the kernel (CPUs interpret it), for ``"cudnn"`` on all but GPUs and where ``cudnn_fits``
        is false, for ``"ring"`` where nothing splits the rows.

    Returns:
      (B, N, H, K).

    Raises:
      ValueError: the implementation is unknown, or cannot do what is asked.
    """
    axis = ring_axis(q_BxNxHxK, keys) if implementation == "ring" else None
    if axis is not None:
        return ring(q_BxNxHxK, keys, values, mask, offset_bias, axis)
    fitting = platform() != "gpu" and fits(q_BxNxHxK, keys) and mask.window is None
    if implementation == "splash" and fitting:
        return splash(q_BxNxHxK, keys, values, mask, offset_bias)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r}: choose one of {IMPLEMENTATIONS}.")
    # Whole rows of keys on every device; queries stay split.
    keys, values = jax.tree.map(
        lambda x: constrain(x, "batch", None, "heads", None), (keys, values)
    )
    on_gpu = jax.default_backend() == "gpu"
    fused = implementation == "cudnn" and on_gpu and cudnn_fits(q_BxNxHxK, keys)
    if not fused and mask.rules[-1] == SAME_BLOCK and len(keys) > 1:
        return _blocked(q_BxNxHxK, keys, values, mask, offset_bias)
    all_keys, all_values = (jnp.concatenate(parts, axis=1) for parts in (keys, values))
    bias = offset_scores(mask, offset_bias)
    if bias is not None:
        bias = bias.astype(q_BxNxHxK.dtype)
    return masked_attention(
        q_BxNxHxK, all_keys, all_values, mask.dense_BxQxK, bias, "cudnn" if fused else "xla"
    )


def _blocked(q_BxNxHxK, keys, values, mask: AttentionMask, offset_bias) -> jax.Array:
    """The last part holds the queries' own blocks: each is compared with its own keys alone.

    This leaves out N - S of N keys, which a mask would have computed and thrown away.
    """
    B, N, H, K = q_BxNxHxK.shape
    S = mask.query.block_size or N
    far = mask.replace(keys=mask.keys[:-1], rules=mask.rules[:-1])
    whole = mask.query.replace(block_size=S)
    near = AttentionMask(whole.by_block(), (whole.by_block(),), (SAME_BLOCK,), mask.window)
    far_keys, far_values = (jnp.concatenate(parts[:-1], axis=1) for parts in (keys, values))
    by_block = partial(jnp.reshape, shape=(-1, S, H, K))
    far_BxHxNxR = masked_scores(q_BxNxHxK, far_keys, far, offset_bias)
    near_scores = masked_scores(by_block(q_BxNxHxK), by_block(keys[-1]), near, offset_bias)
    near_BxHxNxS = near_scores.reshape(B, -1, H, S, S).swapaxes(1, 2).reshape(B, H, N, S)
    weights = jax.nn.softmax(jnp.concatenate([far_BxHxNxR, near_BxHxNxS], axis=-1))
    weights = weights.astype(q_BxNxHxK.dtype)
    far_BxHxNxR, near_BxHxNxS = jnp.split(weights, [far_keys.shape[1]], axis=-1)
    near_weights = near_BxHxNxS.reshape(B, H, -1, S, S).swapaxes(1, 2).reshape(-1, H, S, S)
    own = jnp.einsum("bhnr,brhk->bnhk", near_weights, by_block(values[-1]))
    earlier = jnp.einsum("bhnr,brhk->bnhk", far_BxHxNxR, far_values)
    return earlier + own.reshape(B, N, H, K)
