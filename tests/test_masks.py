"""Who attends to whom in the networks: packed documents, blocks, observed text, neighbours."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.models.dit import OBSERVED, NoisyInputs
from ldlm_jax.models.masks import block_causal, denoising_mask, prefill_mask
from ldlm_jax.models.token_layout import token_layout
from tests.conftest import changed, nowhere_zero


@pytest.fixture(scope="module")
def models(experiment):
    """The networks of the debug config, for 50 tokens."""
    return experiment.networks(50)


@pytest.fixture(scope="module")
def encode(models, experiment):
    """(tokens, layout, known) to the means of their latents."""
    params = nowhere_zero(models.init(jax.random.key(0), experiment.data.window), 0.05)
    encode = partial(models.vae.apply, {"params": params["text_vae"]}, method="encode")
    return lambda *args: encode(*args).mean_BxNxD


class Runner:
    """A DiT with parameters that are nowhere zero, run at one time on everything."""

    def __init__(self, dit, t, marks, layout):
        self.dit, self.t, self.marks, self.layout = dit, t, marks, layout
        z = jnp.zeros((*marks.shape, dit.latent_channels))
        inputs = NoisyInputs(z, t, marks, z, layout), block_causal(layout)
        self.params = nowhere_zero(dit.init(jax.random.key(1), *inputs), 0.2)

    def noisy(self, z, part=slice(None), cache=None, window=None):
        """Denoise a part of the positions after a cache."""
        return self._run(z, self.t, self.marks, part, denoising_mask, cache, window)

    def prefill(self, z, part=slice(None), cache=None, window=None, layout=None):
        """Read clean latents."""
        marks, layout = jnp.full_like(self.marks, OBSERVED), layout or self.layout
        return self._run(z, 0 * self.t, marks, part, prefill_mask, cache, window, layout)

    def _run(self, z, t, marks, part, rule, cache, window, layout=None):
        start, stop, _ = part.indices(z.shape[1])
        layout = (layout or self.layout).slice(start, stop - start)
        inputs = NoisyInputs(z[:, part], t[:, part], marks[:, part], z[:, part], layout)
        mask = rule(layout, cache.layout if cache else None).replace(window=window)
        return self.dit.apply(self.params, inputs, mask, cache)


def latents(dit, *shape):
    return jax.random.normal(jax.random.key(0), (*shape, dit.latent_channels))


def test_latents_of_known_text_hold_nothing_of_the_unknown(encode):
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 6, 50)
    known = jnp.broadcast_to(jnp.arange(32) < 7, tokens.shape)
    layout = token_layout(jnp.ones_like(tokens))
    before = encode(tokens, layout, known)
    after = encode(jnp.where(known, tokens, 5), layout, known)
    chex.assert_trees_all_close(before[:, :7], after[:, :7], atol=1e-6)
    joint = encode(tokens, layout, jnp.zeros_like(known))
    assert float(jnp.abs(joint[:, :7] - before[:, :7]).max()) > 1e-3


@pytest.mark.parametrize("conditioning", ["in_context", "adaln"])
def test_packed_documents_never_meet(models, conditioning):
    dit, z = models.dit.clone(conditioning=conditioning), latents(models.dit, 1, 10)
    layout = token_layout(jnp.array([[1] * 4 + [2] * 6]))
    run = Runner(dit, jnp.full((1, 10), 0.5), jnp.zeros((1, 10), jnp.int32), layout)
    one, other = (run.noisy(x).output_BxNxD for x in (z, z.at[:, 5].add(10.0)))
    chex.assert_trees_all_close(one[:, :4], other[:, :4], atol=1e-5)
    assert float(jnp.abs(one[:, 4] - other[:, 4]).max()) > 1e-4


@pytest.mark.parametrize("conditioning", ["in_context", "adaln"])
def test_block_by_block_with_a_cache_equals_all_blocks_at_once(models, conditioning):
    """A block attends to itself and what came before, at once or out of a cache; never later."""
    dit = models.dit.clone(conditioning=conditioning, time_tokens=0)
    layout = token_layout(jnp.array([[1] * 4 + [2] * 8]), block_size=4)
    run = Runner(dit, jnp.full((1, 12), 0.3), jnp.ones((1, 12), jnp.int32), layout)
    z = latents(dit, 1, 12)
    whole = run.noisy(z)
    for start in (4, 8):
        earlier = run.noisy(z, slice(0, start)).cache
        alone = run.noisy(z, slice(start, start + 4), earlier).output_BxNxD
        chex.assert_trees_all_close(alone, whole.output_BxNxD[:, start : start + 4], atol=1e-4)
    later = run.noisy(z.at[:, 9].add(10.0)).output_BxNxD
    chex.assert_trees_all_close(later[:, :8], whole.output_BxNxD[:, :8], atol=1e-5)
    assert float(jnp.abs(later[:, 8] - whole.output_BxNxD[:, 8]).max()) > 1e-4
    # A noisy copy attends to cached blocks before its own, and never to its own or a later one.
    noisy = run.noisy(z, cache=whole.cache).output_BxNxD
    other = run.noisy(z, cache=run.noisy(z.at[:, 5].add(10.0)).cache).output_BxNxD
    chex.assert_trees_all_close(noisy[:, :8], other[:, :8], atol=1e-5)
    assert float(jnp.abs(noisy[:, 8:] - other[:, 8:]).max()) > 1e-4


@pytest.mark.slow
def test_observed_text_is_attended_to_from_everywhere_and_attends_to_nothing_generated(models):
    """Also by a block that stands before it, out of one cache for all blocks."""
    dit = models.dit.clone(time_tokens=0)
    first = jnp.isin(jnp.arange(12), jnp.array([2, 3, 9, 10, 11]))[None]
    layout = token_layout(jnp.ones((1, 12), jnp.int32), 4, first)
    run = Runner(dit, jnp.where(first, 0.0, 0.3), first.astype(jnp.int32), layout)
    z = latents(dit, 1, 12)

    def clean(z):
        return run.prefill(z).output_BxNxD

    # Of clean text, observed positions attend to the observed ones before them; the others to all
    # that is observed, and what was generated before.
    assert changed(clean, z, 10) == {0, 1, 4, 5, 6, 7, 8, 10, 11}
    assert changed(clean, z, 5) == {5, 6, 7, 8}

    def noisy(of_cache):
        return run.noisy(z, cache=run.prefill(of_cache).cache).output_BxNxD

    assert changed(noisy, z, 10) == {0, 1, 4, 5, 6, 7, 8}
    assert changed(noisy, z, 3) == {0, 1, 4, 5, 6, 7, 8, 9, 10, 11}
    assert changed(noisy, z, 5) == {8}
    cache = run.prefill(z).cache
    for start in (0, 4, 8):  # block by block, as they are generated
        part = slice(start, start + 4)
        alone = run.noisy(z, part, cache).output_BxNxD
        chex.assert_trees_all_close(alone, noisy(z)[:, part], atol=1e-4)


def test_the_cache_is_the_same_in_whatever_blocks_a_text_was_generated(models):
    """At once, or block after block: each latent after those before it."""
    dit = models.dit.clone(time_tokens=0)
    segments, z = jnp.array([[1] * 4 + [2] * 8]), latents(models.dit, 1, 12)
    layout = token_layout(segments, 4)
    run = Runner(dit, jnp.zeros((1, 12)), jnp.ones((1, 12), jnp.int32), layout)
    whole = run.prefill(z).cache
    for size in (1, 2):
        other = run.prefill(z, layout=token_layout(segments, size)).cache
        chex.assert_trees_all_close(whole[:2], other[:2], atol=1e-5)
    first = run.prefill(z, slice(0, 8)).cache
    last = run.prefill(z, slice(8, 12), first).cache
    joined = jnp.concatenate([first.features_BxRxM, last.features_BxRxM], axis=1)
    chex.assert_trees_all_close(joined, whole.features_BxRxM, atol=1e-4)


def test_a_short_context_is_the_neighbours_alone(models):
    """Clean latents attend to themselves, noisy ones to those beside them: cached or of their own
    block."""
    dit = models.dit.clone(time_tokens=0)
    layout, z = token_layout(jnp.ones((1, 12), jnp.int32), 4), latents(models.dit, 1, 12)
    run = Runner(dit, jnp.full((1, 12), 0.3), jnp.zeros((1, 12), jnp.int32), layout)

    def noisy(z, clean):
        return run.noisy(z, cache=run.prefill(clean, window=0).cache, window=1).output_BxNxD

    assert changed(lambda z: run.prefill(z, window=0).features_BxNxM, z, 5) == {5}
    block, layers = {4, 5, 6, 7}, dit.layers  # each layer reaches as far again, within the block
    for at, moved in ((3, block & set(range(4, 4 + layers))), (4, set()), (6, set())):
        assert changed(lambda clean: noisy(z, clean), z, at) == moved
    assert changed(lambda z: noisy(z, z), z, 7) == {8, 9} | block & set(range(7 - layers, 8))


def test_in_single_token_blocks_each_latent_attends_to_all_the_clean_text_before_it(models):
    """The rows beside them keep their blocks; attention still runs over the larger ones."""
    dit, z = models.dit.clone(time_tokens=0), latents(models.dit, 2, 12)
    layout = token_layout(jnp.ones((2, 12), jnp.int32), 4, single_B=jnp.array([True, False]))
    assert layout.block_ids_BxN.tolist() == [list(range(12)), [0] * 4 + [1] * 4 + [2] * 4]
    run = Runner(dit, jnp.full((2, 12), 0.3), jnp.zeros((2, 12), jnp.int32), layout)

    def moved(clean, noisy):
        new, old = (run.noisy(x, cache=run.prefill(c).cache).output_BxNxD
                    for x, c in ((noisy, clean), (z, z)))  # fmt: skip
        difference = jnp.abs(new - old).max(-1)
        return [set(np.flatnonzero(np.asarray(row) > 1e-4)) for row in difference]

    elsewhere = z.at[:, 5].add(10.0)
    assert moved(elsewhere, z) == [{6, 7, 8, 9, 10, 11}, {8, 9, 10, 11}]
    assert moved(z, elsewhere) == [{5}, {4, 5, 6, 7}]


def test_the_encoder_sees_no_later_block(encode):
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 6, 50)
    nothing = jnp.zeros(tokens.shape, bool)
    layout = token_layout(jnp.ones_like(tokens), block_size=8)
    before = encode(tokens, layout, nothing)
    after = encode(tokens.at[:, 9].set(5), layout, nothing)
    chex.assert_trees_all_close(before[:, :8], after[:, :8], atol=1e-6)
    assert float(jnp.abs(before[:, 8] - after[:, 8]).max()) > 1e-4
