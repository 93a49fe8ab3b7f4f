"""Layers: products, dropout, and heads that begin at their neighbours."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.models.attention import neighbour_bias
from ldlm_jax.models.dense import activation_dtype, look_up, matmul
from ldlm_jax.models.dit import NoisyInputs
from ldlm_jax.models.layers import Attention, Block, Dropout
from ldlm_jax.models.lowering import compile_for
from ldlm_jax.models.masks import block_causal
from ldlm_jax.models.token_layout import token_layout
from tests.conftest import nowhere_zero


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout_drops_the_same_features_of_a_row_and_only_in_training(experiment, remat):
    dit = experiment.networks(50).dit.clone(remat=remat)
    z = jax.random.normal(jax.random.key(0), (2, 12, dit.latent_channels))
    marks, layout = jnp.zeros((2, 12), jnp.int32), token_layout(jnp.ones((2, 12), jnp.int32))
    args = NoisyInputs(z, 0.3 + marks, marks, z, layout), block_causal(layout)
    params = nowhere_zero(dit.init(jax.random.key(1), *args), 0.05)

    def said(rate, key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        return dit.clone(dropout=rate).apply(params, *args, rngs=rngs)

    whole, first, second = said(0.0), said(0.5, key=1), said(0.5, key=2)
    chex.assert_trees_all_equal(said(0.5).output_BxNxD, whole.output_BxNxD)  # no key: evaluation
    for other in (whole, second):
        assert float(jnp.abs(first.output_BxNxD - other.output_BxNxD).max()) > 1e-2

    ones = jnp.ones((3, 5, 64))
    dropped = Dropout(0.25).apply({}, ones, rngs={"dropout": jax.random.key(0)})
    chex.assert_trees_all_equal(dropped, jnp.broadcast_to(dropped[:, :1], ones.shape))
    assert np.unique(dropped) == pytest.approx([0.0, 4 / 3])
    assert 0.1 < float((dropped == 0).mean()) < 0.4
    assert (dropped[0] != dropped[1]).any()


def test_matmul_on_cpu_equals_the_plain_product():
    x, w = (
        jax.random.normal(jax.random.key(0), (2, 6, 8)),
        jax.random.normal(jax.random.key(1), (8, 3, 5)),
    )

    def loss(product, dtype):
        return jax.value_and_grad(
            lambda x, w: jnp.sum(jnp.sin(product(x, w, dtype).astype(jnp.float32))), argnums=(0, 1)
        )(x, w)

    plain = loss(lambda x, w, dtype: jnp.tensordot(x, w, axes=1), jnp.float32)
    chex.assert_trees_all_close(loss(matmul, jnp.float32), plain, rtol=1e-5)
    ours = loss(matmul, jnp.bfloat16)  # bf16 keeps eight bits
    chex.assert_trees_all_close(ours, plain, atol=0.15, rtol=0.05)
    assert matmul(x, w, jnp.bfloat16).dtype == activation_dtype(jnp.bfloat16)


@pytest.mark.slow
def test_what_is_compiled_for_accelerators_computes_the_same():
    """Products apart, kernels collected, gradients written down: layout, not arithmetic."""
    layout = token_layout(jnp.ones((2, 8), jnp.int32))
    block = Block(2, 48, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 8, 32))
    args = (None, block_causal(layout), layout.positions_BxN)
    params = nowhere_zero(block.init(jax.random.key(1), x, *args), 0.2)

    def outcome():
        def loss(params, x):
            return jnp.sum(jnp.sin(block.apply(params, x, *args)[0]))

        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    here = outcome()
    for platform in ("tpu", "gpu"):
        with compile_for(platform):
            chex.assert_trees_all_close(outcome(), here, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_shared_row_is_summed_in_fp32():
    """In bf16 the sum of ones would stop at 256."""
    table, ids = jnp.ones((3, 4), jnp.bfloat16), jnp.array([[0] * 5000, [2] * 5000])
    summed = jax.grad(lambda t: jnp.sum(look_up(t, ids).astype(jnp.float32)))(table)
    assert summed.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(summed[:, 0]), [5000, 0, 5000], rtol=0.01)
    np.testing.assert_array_equal(look_up(2 * table, ids), 2 * jnp.ones((2, 5000, 4)))


def test_heads_look_at_their_neighbours_from_the_start():
    """Each head of the first few favours one offset: before, after, two before; the last none."""
    bias = np.asarray(neighbour_bias(None, (4, 9)))
    assert (np.argmax(bias, axis=1)[:3] - 4).tolist() == [-1, 1, -2] and not bias[3].any()


def test_the_offset_bias_reaches_the_right_keys():
    """With one layer and one head a strong bias for offset -1 makes a position's left neighbour
    all that it sees; offsets of R and more share one bias."""
    attention = Attention(1, jnp.float32, offset_radius=3)
    x = jax.random.normal(jax.random.key(0), (1, 8, 16))
    layout = token_layout(jnp.ones((1, 8), jnp.int32))
    args = (block_causal(layout), layout.positions_BxN)
    params = nowhere_zero(attention.init(jax.random.key(1), x, *args), 0.2)

    def run(offset, x):
        bias = jnp.zeros((1, 7)).at[0, 3 + offset].set(50.0)
        return attention.apply({"params": {**params["params"], "offset_bias": bias}}, x, *args)[0]

    for offset in (-1, 2):
        base, moved = run(offset, x), run(offset, x.at[0, 4].add(1.0))
        changed = np.abs(moved - base).max(axis=(0, 2)) > 1e-3
        expected = {4 - offset} | {i for i in range(8) if not 0 <= i + offset < 8}
        assert set(np.flatnonzero(changed)) <= expected and changed[4 - offset]
    far = [run(3, x.at[0, key].add(1.0)) - run(3, x) for key in (3, 7)]
    assert all(float(jnp.abs(change[0, 0]).max()) > 1e-4 for change in far)
