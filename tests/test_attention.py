"""Every implementation of attention gives what a plain masked softmax gives, gradients too."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.models.attention import attend, cudnn_fits
from ldlm_jax.models.lowering import compile_for
from ldlm_jax.models.masks import block_causal, denoising_mask, prefill_mask
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.parallel.mesh import MeshConfig, make_mesh
from ldlm_jax.parallel.sharding import AxisRules

HEADS, WIDTH = 2, 128


def documents(length: int) -> jax.Array:
    """Two rows of packed documents that begin at multiples of 8, the second with empty space."""
    segments = np.ones((2, length), np.int32)
    segments[0, 3 * length // 8 :] = 2
    segments[1, 5 * length // 8 :] = 0
    return jnp.asarray(segments)


def case(length: int, block: int, with_memory: bool, radius: int, holes=False, see=None):
    """Queries, keys and values by part, who sees whom, and a bias; the second row's blocks are
    of one."""
    first = jax.random.bernoulli(jax.random.key(9), 0.3, (2, length)) if holes else None
    layout = token_layout(documents(length), block, first, jnp.array([False, True]))
    if see is None:
        see = denoising_mask if with_memory else block_causal
    mask = see(layout, layout) if with_memory else see(layout)
    keys = jax.random.split(jax.random.key(length + block), 6)
    draw = [jax.random.normal(key, (2, length, HEADS, WIDTH)) for key in keys[:5]]
    parts = (tuple(draw[1:3]), tuple(draw[3:5])) if with_memory else ((draw[1],), (draw[3],))
    bias = jax.random.normal(keys[5], (HEADS, 2 * radius + 1)) if radius else None
    return draw[0], *parts, mask, bias


def plainly(q, keys, values, mask, bias):
    """The definition, with every array written out."""
    k, v = (np.concatenate(parts, axis=1) for parts in (keys, values))
    mask, offset = np.asarray(mask.dense_BxQxK), np.asarray(mask.offset_BxQxK)
    scores = np.einsum("bnhk,brhk->bhnr", q, k) / np.sqrt(q.shape[-1])
    if bias is not None:
        radius = bias.shape[1] // 2
        clipped = np.clip(offset, -radius, radius) + radius
        scores += np.asarray(bias)[:, clipped].swapaxes(0, 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * mask[:, None]
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnr,brhk->bnhk", weights, v)


CASES = [(0, False), (8, False), (8, True), (4, True)]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("block", "with_memory"), CASES)
def test_xla_is_the_definition(block, with_memory, holes):
    args = case(64, block, with_memory, radius=3, holes=holes)
    chex.assert_trees_all_close(attend(*args), plainly(*args), atol=1e-5)


def compare(implementation: str, args, mesh_shape: dict | None = None):
    """Outputs and gradients of an implementation and of xla, fp32."""
    q, keys, values, mask, bias = args
    push = jax.random.normal(jax.random.key(9), q.shape)

    def outcome(implementation):
        def pushed(arrays):
            out = attend(*arrays[:3], mask, arrays[3], implementation)
            return jnp.sum(out * push), out

        return jax.jit(jax.value_and_grad(pushed, has_aux=True))((q, keys, values, bias))

    expected = outcome("xla")
    if mesh_shape is None:
        actual = outcome(implementation)
    else:
        mesh = make_mesh(MeshConfig(**mesh_shape))
        with jax.set_mesh(mesh), nn.logical_axis_rules(AxisRules().pairs()):
            actual = outcome(implementation)
    chex.assert_trees_all_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("mesh_shape", [{"data": 2, "sequence": 4}, {"sequence": 2, "tensor": 2}])
@pytest.mark.parametrize(("block", "with_memory"), CASES)
def test_ring(block, with_memory, mesh_shape):
    compare("ring", case(64, block, with_memory, radius=3), mesh_shape)


@pytest.mark.parametrize("mesh_shape", [None, {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 2}])
@pytest.mark.parametrize(("block", "with_memory"), CASES)
def test_splash(block, with_memory, mesh_shape):
    compare("splash", case(128, block, with_memory, radius=0), mesh_shape)


@pytest.mark.parametrize("see", [denoising_mask, prefill_mask])
def test_splash_leaves_tiles_out(see):
    compare("splash", case(384 + 256, 4, True, radius=0, see=see))


def test_splash_sees_over_a_hole():
    """As the encoder has it: known text stands on both sides of what is to be written."""
    q, keys, values, mask, bias = case(128, 0, False, radius=0)
    known = jnp.abs(jnp.arange(128) % 64 - 32) > 8
    layout = mask.query.replace(segment_ids_BxN=2 * mask.query.segment_ids_BxN + known)
    compare("splash", (q, keys, values, block_causal(layout), bias))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("block", "with_memory"), CASES)
def test_cudnn(block, with_memory):
    q, keys, values, mask, bias = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x,
        case(128, block, with_memory, radius=3),
    )
    actual = attend(q, keys, values, mask, bias, "cudnn")
    expected = attend(q, keys, values, mask, bias)
    chex.assert_trees_all_close(actual, expected, atol=3e-2)


def test_a_run_of_tpus_can_be_sampled_on_gpus():
    args = case(128, 8, True, radius=0)
    for place, kernels in (("tpu", True), ("gpu", False)):
        with compile_for(place):
            traced = jax.make_jaxpr(lambda: attend(*args, "splash"))()
        assert ("pallas_call" in str(traced)) == kernels


def test_what_an_implementation_cannot_do_is_said():
    args = case(128, 8, True, radius=3)
    with pytest.raises(ValueError, match="dit.offset_radius=0"):
        attend(*args, "splash")
    with pytest.raises(ValueError, match="choose one of"):
        attend(*args, "flash")


def test_what_nvidias_kernel_cannot_take_is_left_to_xla():
    def fits(length=82, keys=(82,), width=64, dtype=jnp.bfloat16):
        q, *parts = (jnp.zeros((1, n, 2, width), dtype) for n in (length, *keys))
        return cudnn_fits(q, tuple(parts))

    assert fits() and fits(keys=(41, 41))
    assert not fits(length=81) and not fits(keys=(82, 41))  # odd
    assert not fits(width=60) and not fits(dtype=jnp.float32)
