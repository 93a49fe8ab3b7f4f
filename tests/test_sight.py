"""Who sees whom in the networks: packed documents, blocks, known text, neighbours."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.models.token_layout import token_layout
from tests.conftest import changed, nowhere_zero


@pytest.fixture(scope="module")
def models(experiment):
    """The networks of the debug config, for 50 tokens."""
    return experimentnetworks(50)


@pytest.fixture(scope="module")
def encode(models, experiment):
    """(tokens, layout, known) to the means of their latents."""
    params = nowhere_zero(models.init(jax.random.key(0), experiment.data.window), 0.05)
    encode = partial(models.vae.apply, {"params": params["text_vae"]}, method="encode")
    return lambda *args: encode(*args).mean_BxNxD


def random_parameters(module, *args):
    """A module's, nowhere zero."""
    return nowhere_zero(module.init(jax.random.key(1), *args), 0.2)


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
    dit = models.dit.clone(conditioning=conditioning)
    z = jax.random.normal(jax.random.key(0), (1, 10, dit.latent_channels))
    args = (jnp.full((1, 10), 0.5), jnp.zeros((1, 10), jnp.int32))
    rest = (jnp.zeros_like(z), token_layout(jnp.array([[1] * 4 + [2] * 6])))
    params = random_parameters(dit, z, *args, *rest)
    one = dit.apply(params, z, *args, *rest).output_BxNxD
    other = dit.apply(params, z.at[:, 5].add(10.0), *args, *rest).output_BxNxD
    chex.assert_trees_all_close(one[:, :4], other[:, :4], atol=1e-5)
    assert float(jnp.abs(one[:, 4] - other[:, 4]).max()) > 1e-4


@pytest.mark.parametrize("conditioning", ["in_context", "adaln"])
def test_block_by_block_with_memory_equals_all_blocks_at_once(models, conditioning):
    """A block sees itself and what came before, whether at once or out of memory; nothing later."""
    dit = models.dit.clone(conditioning=conditioning, time_tokens=0)
    layout = token_layout(jnp.array([[1] * 4 + [2] * 8]), block_size=4)
    z = jax.random.normal(jax.random.key(0), (1, 12, dit.latent_channels))
    t, state = jnp.full((1, 12), 0.3), jnp.ones((1, 12), jnp.int32)
    params = random_parameters(dit, z, t, state, z, layout)

    def run(z, start, size, memory=None):
        part = slice(start, start + size)
        return dit.apply(params, z[:, part], t[:, part], state[:, part], z[:, part],
                         layout.cut(start, size), memory)  # fmt: skip

    whole = run(z, 0, 12)
    for start in (4, 8):
        earlier = run(z, 0, start).memory
        alone = run(z, start, 4, earlier).output_BxNxD
        chex.assert_trees_all_close(alone, whole.output_BxNxD[:, start : start + 4], atol=1e-4)
    later = run(z.at[:, 9].add(10.0), 0, 12).output_BxNxD
    chex.assert_trees_all_close(later[:, :8], whole.output_BxNxD[:, :8], atol=1e-5)
    assert float(jnp.abs(later[:, 8] - whole.output_BxNxD[:, 8]).max()) > 1e-4
    # A noisy copy remembers clean blocks before its own, and never its own or a later one.
    noisy = run(z, 0, 12, whole.memory).output_BxNxD
    changed = run(z.at[:, 5].add(10.0), 0, 12).memory
    other = run(z, 0, 12, changed).output_BxNxD
    chex.assert_trees_all_close(noisy[:, :8], other[:, :8], atol=1e-5)
    assert float(jnp.abs(noisy[:, 8:] - other[:, 8:]).max()) > 1e-4


def test_known_text_is_seen_from_everywhere_and_sees_nothing_unknown(models):
    """Also by a block that stands before it, out of one memory for all blocks."""
    dit = models.dit.clone(time_tokens=0)
    first = jnp.isin(jnp.arange(12), jnp.array([2, 3, 9, 10, 11]))[None]
    layout = token_layout(jnp.ones((1, 12), jnp.int32), 4, first)
    z = jax.random.normal(jax.random.key(0), (1, 12, dit.latent_channels))
    t, state = jnp.where(first, 0.0, 0.3), first.astype(jnp.int32)
    params = random_parameters(dit, z, t, state, z, layout)

    def remember(z):
        said = dit.apply(params, z, 0 * t, 0 * state + 1, z, layout, reading=True)
        return said.output_BxNxD, said.memory

    # Of clean text, known positions see the known ones before them; the others see all that is
    # known, and what was written before.
    assert changed(lambda z: remember(z)[0], z, 10) == {0, 1, 4, 5, 6, 7, 8, 10, 11}
    assert changed(lambda z: remember(z)[0], z, 5) == {5, 6, 7, 8}

    def noisy(memory_of):
        return dit.apply(params, z, t, state, z, layout, remember(memory_of)[1]).output_BxNxD

    assert changed(noisy, z, 10) == {0, 1, 4, 5, 6, 7, 8}
    assert changed(noisy, z, 3) == {0, 1, 4, 5, 6, 7, 8, 9, 10, 11}
    assert changed(noisy, z, 5) == {8}
    for start in (0, 4, 8):  # block by block, as they are written
        part = slice(start, start + 4)
        alone = dit.apply(params, z[:, part], t[:, part], state[:, part], z[:, part],
                          layout.cut(start, 4), remember(z)[1]).output_BxNxD  # fmt: skip
        chex.assert_trees_all_close(alone, noisy(z)[:, part], atol=1e-4)


def test_what_is_remembered_is_the_same_in_whatever_blocks_it_was_written(models):
    """At once, or block after block: each latent as it is read after those before it."""
    dit = models.dit.clone(time_tokens=0)
    segments = jnp.array([[1] * 4 + [2] * 8])
    z = jax.random.normal(jax.random.key(0), (1, 12, dit.latent_channels))
    t, state = jnp.zeros((1, 12)), jnp.ones((1, 12), jnp.int32)
    params = random_parameters(dit, z, t, state, z, token_layout(segments, 4))

    def read(size, start=0, end=12, memory=None):
        part = slice(start, end)
        return dit.apply(
            params, z[:, part], t[:, part], state[:, part], z[:, part],
            token_layout(segments, size).cut(start, end - start), memory, reading=True,
        ).memory  # fmt: skip

    whole = read(4)
    for size in (1, 2):
        for one, other in zip(whole[:2], read(size)[:2], strict=True):
            chex.assert_trees_all_close(one, other, atol=1e-5)
    first = read(4, end=8)
    last = read(4, start=8, memory=first)
    joined = jnp.concatenate([first.features_BxRxM, last.features_BxRxM], axis=1)
    chex.assert_trees_all_close(joined, whole.features_BxRxM, atol=1e-4)


def test_what_sees_next_to_nothing_sees_its_neighbours_alone(models):
    """Clean latents themselves, noisy ones those beside them: remembered or of their own block."""
    dit = models.dit.clone(time_tokens=0)
    layout = token_layout(jnp.ones((1, 12), jnp.int32), 4)
    z = jax.random.normal(jax.random.key(0), (1, 12, dit.latent_channels))
    t, state = jnp.full((1, 12), 0.3), jnp.zeros((1, 12), jnp.int32)
    params = random_parameters(dit, z, t, state, z, layout)

    def remembered(z):
        return dit.apply(params, z, 0 * t, state + 1, z, layout, reading=True, near=True)

    def noisy(z, clean):
        memory = remembered(clean).memory
        return dit.apply(params, z, t, state, z, layout, memory, near=True).output_BxNxD

    assert changed(lambda z: remembered(z).features_BxNxM, z, 5) == {5}
    block, layers = {4, 5, 6, 7}, dit.layers  # each layer sees as far again, within the block
    for at, moved in ((3, block & set(range(4, 4 + layers))), (4, set()), (6, set())):
        assert changed(lambda clean: noisy(z, clean), z, at) == moved
    assert changed(lambda z: noisy(z, z), z, 7) == {8, 9} | block & set(range(7 - layers, 8))


def test_in_blocks_of_one_each_latent_sees_all_the_clean_text_before_it(models):
    """The rows beside them keep their blocks; attention still runs over the larger ones."""
    dit = models.dit.clone(time_tokens=0)
    layout = token_layout(jnp.ones((2, 12), jnp.int32), 4, single_B=jnp.array([True, False]))
    assert layout.block_ids_BxN.tolist() == [list(range(12)), [0] * 4 + [1] * 4 + [2] * 4]
    z = jax.random.normal(jax.random.key(0), (2, 12, dit.latent_channels))
    t, state = jnp.full((2, 12), 0.3), jnp.zeros((2, 12), jnp.int32)
    params = random_parameters(dit, z, t, state, z, layout)

    def run(clean, noisy):
        memory = dit.apply(params, clean, 0 * t, state + 1, clean, layout).memory
        return dit.apply(params, noisy, t, state, noisy, layout, memory).output_BxNxD

    def moved(new):
        difference = jnp.abs(new - run(z, z)).max(-1)
        return [set(np.flatnonzero(np.asarray(row) > 1e-4)) for row in difference]

    elsewhere = z.at[:, 5].add(10.0)
    assert moved(run(elsewhere, z)) == [{6, 7, 8, 9, 10, 11}, {8, 9, 10, 11}]
    assert moved(run(z, elsewhere)) == [{5}, {4, 5, 6, 7}]


def test_the_encoder_sees_no_later_block(encode):
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 6, 50)
    nothing = jnp.zeros(tokens.shape, bool)
    layout = token_layout(jnp.ones_like(tokens), block_size=8)
    before = encode(tokens, layout, nothing)
    after = encode(tokens.at[:, 9].set(5), layout, nothing)
    chex.assert_trees_all_close(before[:, :8], after[:, :8], atol=1e-6)
    assert float(jnp.abs(before[:, 8] - after[:, 8]).max()) > 1e-4
