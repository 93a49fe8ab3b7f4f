"""The baselines' network: causal where it must be, and its cache changes nothing."""

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.baselines.token_transformer import Cache, TokenTransformer
from ldlm_jax.models.token_layout import token_layout
from tests.conftest import nowhere_zero


@pytest.fixture(scope="module")
def network():
    model = TokenTransformer(vocab_size=50, width=32, heads=2, layers=2, offset_radius=3)
    tokens = jax.random.randint(jax.random.key(0), (2, 10), 0, 50)
    layout = token_layout(jnp.ones((2, 10), jnp.int32), 1)
    params = nowhere_zero(model.init(jax.random.key(1), tokens, layout), 0.2)
    return model, params, tokens, layout


def test_no_token_sees_a_later_one_unless_it_may(network):
    model, params, tokens, layout = network
    changed = tokens.at[:, 6].add(1) % 50
    before, after = (model.apply(params, t, layout).logits_BxNxV for t in (tokens, changed))
    chex.assert_trees_all_close(before[:, :6], after[:, :6], atol=1e-5)
    assert float(jnp.abs(before[:, 7] - after[:, 7]).max()) > 1e-3
    both_sides = token_layout(layout.segment_ids_BxN)
    before, after = (model.apply(params, t, both_sides).logits_BxNxV for t in (tokens, changed))
    assert float(jnp.abs(before[:, 0] - after[:, 0]).max()) > 1e-3


def test_token_by_token_with_a_cache_equals_all_at_once(network):
    model, params, tokens, layout = network
    whole = model.apply(params, tokens, layout).logits_BxNxV
    blank = jnp.zeros((2, 2, 10, 2, 16))  # layers, rows, tokens, heads, head width
    cache = (blank, blank)
    for i in range(10):
        logits, own, _ = model.apply(
            params, tokens[:, i : i + 1], layout.slice(i, 1), Cache(cache, layout)
        )
        chex.assert_trees_all_close(logits[:, 0], whole[:, i], atol=1e-4)
        cache = jax.tree.map(lambda all_, new, i=i: all_.at[:, :, i : i + 1].set(new), cache, own)


def test_a_hidden_layer_is_that_of_the_blocks_below(network):
    model, params, tokens, layout = network
    tapped = model.clone(hidden_layer=1)
    said, plain = tapped.apply(params, tokens, layout), model.apply(params, tokens, layout)
    assert plain.hidden_BxNxM is None
    chex.assert_trees_all_equal(said.logits_BxNxV, plain.logits_BxNxV)
    first = model.clone(layers=1, hidden_layer=1)
    of_first = jax.tree.map(lambda x: x, params)
    of_first["params"]["trunk"]["blocks"] = jax.tree.map(
        lambda x: x[:1], params["params"]["trunk"]["blocks"]
    )
    alone = first.apply(of_first, tokens, layout).hidden_BxNxM
    chex.assert_trees_all_close(said.hidden_BxNxM, alone, atol=1e-5)
