"""Attention over rows whose positions are split over devices.

Shape letters: B batch, N positions (queries), R positions (keys), H heads, K head width.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ldlm_jax.models.kernels.scores import MASKED, masked_scores
from ldlm_jax.models.masks import ALL, SAME_BLOCK, AttentionMask

# Of this the exponential is nothing in fp32, and still an ordinary number on every backend.
_LEAST = -80.0


def ring_axis(q_BxNxHxK: jax.Array, keys: tuple[jax.Array, ...]) -> str | None:
    """The mesh axis that splits positions, if there is one in use and these rows divide."""
    (axis,) = nn.logical_to_mesh_axes(("sequence",))
    mesh = jax.sharding.get_abstract_mesh()
    if axis is None or axis not in mesh.axis_names:
        return None
    lengths = (q_BxNxHxK.shape[1], *(k.shape[1] for k in keys))
    return axis if all(length % mesh.shape[axis] == 0 for length in lengths) else None


def ring(q_BxNxHxK, keys, values, mask: AttentionMask, offset_bias, axis: str) -> jax.Array:
    """Ring attention (Liu et al. 2023): keys travel from device to device along the mesh axis that
    splits the positions, and each device keeps a running softmax of its own queries.

    Blocks that attend to themselves alone lie within a device and do not travel.
    """
    if ALL in mask.rules:
        raise ValueError("attention 'ring' takes no time tokens: set dit.time_tokens=0.")
    split = PartitionSpec(None, axis)
    rows = jax.shard_map(
        partial(_ring_of_one, axis=axis),
        in_specs=(split, split, split, split, PartitionSpec()),
        out_specs=split,
        axis_names={axis},
        check_vma=False,
    )
    return rows(q_BxNxHxK, keys, values, mask, offset_bias)


def _ring_of_one(
    q_BxNxHxK, keys, values, mask: AttentionMask, offset_bias, *, axis: str
) -> jax.Array:
    """The attention of this device's queries."""
    size = jax.lax.axis_size(axis)
    B, N, H, K = q_BxNxHxK.shape
    add = jax.checkpoint(partial(_add_part, q_BxNxHxK, offset_bias=offset_bias))
    total = (
        jnp.zeros((B, N, H, K), jnp.float32),
        jnp.zeros((B, H, N, 1), jnp.float32),
        jnp.full((B, H, N, 1), MASKED, jnp.float32),
    )
    travelling = []
    for index, rule in enumerate(mask.rules):
        part = keys[index], values[index], mask.part(index)
        if rule == SAME_BLOCK and mask.query.block_size and N % mask.query.block_size == 0:
            total = add(total, *part)
        else:
            travelling.append(part)

    def turn(carry, _):
        total, parts = carry
        for k, v, of_part in parts:
            total = add(total, k, v, of_part)
        around = [(i, (i + 1) % size) for i in range(size)]
        parts = [
            (*jax.lax.ppermute((k, v), axis, around),
             of_part.replace(keys=jax.lax.ppermute(of_part.keys, axis, around)))
            for k, v, of_part in parts
        ]  # fmt: skip
        return (total, parts), None

    (total, _), _ = jax.lax.scan(turn, (total, travelling), length=size)
    weighted, weight, _ = total
    return (weighted / weight.swapaxes(1, 2)).astype(q_BxNxHxK.dtype)


def _add_part(q_BxNxHxK, total, k, v, mask: AttentionMask, offset_bias):
    """A running softmax (sum, weight, largest score) with another part of the keys."""
    weighted, weight, largest = total
    scores = masked_scores(q_BxNxHxK, k, mask, offset_bias)
    # The result does not depend on what is subtracted, so no gradient need flow through it.
    new_largest = jax.lax.stop_gradient(jnp.maximum(largest, scores.max(-1, keepdims=True)))
    shrink = jnp.exp(jnp.maximum(largest - new_largest, _LEAST))
    # Where all keys so far are masked every score is equally low; none of it may count.
    seen = scores > MASKED
    p = jnp.where(seen, jnp.exp(jnp.where(seen, scores - new_largest, 0.0)), 0.0)
    added = jnp.einsum("bhnr,brhk->bnhk", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    weighted = weighted * shrink.swapaxes(1, 2) + added
    return weighted, weight * shrink + p.sum(-1, keepdims=True), new_largest
