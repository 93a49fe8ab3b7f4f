"""The second lesson of the clean text: each next token, where it is not seen, and its use."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.dataset import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.losses.next_token import next_is_unread, next_token_loss
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.dit import GENERATED, OBSERVED, NoisyInputs
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.models.next_token_prior import previous_latent
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.phases import Phase
from ldlm_jax.train_step import fused_loss
from tests.conftest import IN_BLOCKS, nowhere_zero


@pytest.fixture(scope="module")
def blocks(overrides):
    """Experiment in blocks of four, its networks with parameters nowhere zero, and a batch."""
    changes = [*IN_BLOCKS, "diffusion.single_token_blocks=0.5", "diffusion.next_token_prior=0.5"]
    experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
    prepared = prepare(experiment.data)
    models = experiment.networks(prepared.tokenizer.vocab_size)
    params = nowhere_zero(models.init(jax.random.key(0), experiment.data.window), 0.05)
    return experiment, models, params, next(train_batches(prepared, experiment.data, 8))


def test_only_what_has_not_been_read_is_asked_for():
    """Blocks of four, blocks of one, and a known hole, over two documents and empty space.

    Within a block, too, clean text is read latent by latent.
    """
    segments = jnp.array([[1] * 8 + [2] * 3 + [0]] * 3)
    known = jnp.zeros((3, 12), bool).at[2, 2:6].set(True)
    layout = token_layout(segments, 4, known, jnp.array([False, True, True]))
    asked = [np.flatnonzero(row).tolist() for row in np.asarray(next_is_unread(layout))]
    # All that is known is read before position 2 would be written.
    assert asked == 2 * [[0, 1, 2, 3, 4, 5, 6, 8, 9]] + [[0, 2, 3, 4, 5, 6, 8, 9]]


@pytest.mark.slow
def test_no_position_sees_what_it_is_asked_for(blocks):
    """The last latent is asked for nothing more, so it must not move the loss."""
    experiment, models, params, _ = blocks
    denoiser = Denoiser.create(
        models, params, experiment.diffusion, LatentStats.create(models.vae.latent_channels)
    )
    layout = token_layout(jnp.ones((2, 12), jnp.int32), 4, single_B=jnp.array([True, False]))
    tokens = jnp.tile(jnp.arange(20, 32), (2, 1))

    def loss(z_BxNxD):
        features = denoiser.prefill(z_BxNxD, jnp.full((2, 12), OBSERVED), layout).features_BxNxM
        return next_token_loss(denoiser, features, tokens, layout)

    z = jax.random.normal(jax.random.key(0), (2, 12, models.vae.latent_channels))
    value, gradient = jax.value_and_grad(loss)(z)
    moves = [np.flatnonzero(row).tolist() for row in np.asarray(jnp.abs(gradient).max(-1) > 1e-7)]
    assert moves == 2 * [list(range(11))]
    features = denoiser.prefill(z, jnp.full((2, 12), OBSERVED), layout).features_BxNxM
    told = jax.nn.log_softmax(denoiser.read(features, layout))
    asked = [-told[row, i, 21 + i] for row in range(2) for i in range(11)]
    assert float(value) == pytest.approx(float(np.mean(asked)), rel=1e-4)


@pytest.mark.slow
def test_the_fused_step_asks_for_it_beside_the_denoising_or_alone(blocks):
    experiment, models, params, batch = blocks
    stats = LatentStats.create(models.vae.latent_channels)
    arguments = params, batch, stats, jax.random.key(1), 0

    def step_of(trained=experiment.diffusion, **weights):
        recipe = dataclasses.replace(experiment.recipe(models), diffusion=trained)
        phase = Phase(reconstruction=0.0, kl=0.0, encoder_gradient=1.0, **weights)
        step = jax.value_and_grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
        return jax.jit(step).lower(*arguments).compile()

    both, alone = step_of(diffusion=1.0, next_token=3.0), step_of(diffusion=0.0, next_token=3.0)
    (loss, aux), _ = both(*arguments)
    assert loss == pytest.approx(float(aux["loss/diffusion"] + 3 * aux["loss/next_token"]), 1e-5)
    (loss, aux), gradient = alone(*arguments)
    assert "loss/diffusion" not in aux
    assert loss == pytest.approx(3 * float(aux["loss/next_token"]), rel=1e-4)
    # A language model: the latents learn as well, and the noisy pass costs nothing.
    of_encoder = jax.tree.leaves(gradient["text_vae"]["encoder"])
    assert all(float(jnp.abs(g).max()) > 0 for g in of_encoder)
    assert alone.cost_analysis()["flops"] < 0.6 * both.cost_analysis()["flops"]
    # Every latent is a block of its own, and nothing is known beforehand.
    plain = dataclasses.replace(
        experiment.diffusion, single_token_blocks=1.0, prefix=0.0, suffix=0.0, infill=0.0
    )
    (_, as_one), _ = step_of(plain, diffusion=1.0, next_token=3.0)(*arguments)
    assert aux["loss/next_token"] == pytest.approx(float(as_one["loss/next_token"]), rel=1e-5)


def test_what_stands_just_before_is_of_an_earlier_block():
    """Blocks of four, blocks of one, and a known hole, over two documents and empty space."""
    segments = jnp.array([[1] * 8 + [2] * 3 + [0]] * 3)
    known = jnp.zeros((3, 12), bool).at[2, 2:6].set(True)
    layout = token_layout(segments, 4, known, jnp.array([False, True, True]))
    index, told, blind = (np.asarray(x) for x in previous_latent(layout, layout))
    found = [{i: int(index[row, i]) for i in np.flatnonzero(told[row])} for row in range(3)]
    assert found[0] == {4: 3}
    assert found[1] == {i: i - 1 for i in (1, 2, 3, 4, 5, 6, 7, 9, 10)}
    # Known text is read before all other: position 2 does not see the one before it.
    assert found[2] == {i: i - 1 for i in (1, 3, 4, 5, 6, 7, 9, 10)}
    # Position 1 sees known text after it that position 0 has seen as well, and so it is told all.
    assert not blind.any()


@pytest.mark.parametrize("single", [False, True])
def test_what_stands_before_a_hole_is_blind_to_what_follows_it(single):
    segments = jnp.array([[1] * 12])
    known = jnp.array([[True] * 4 + [False] * 4 + [True] * 4])
    layout = token_layout(segments, 4, known, jnp.array([single]))
    _, told, blind = (np.asarray(x)[0] for x in previous_latent(layout, layout))
    assert told[4] and blind[4]
    # Later ones are told what has been read with all that is known in mask, or nothing.
    assert told[5:8].all() == single and not blind[5:8][told[5:8]].any()
    assert not blind[:4].any() and not blind[8:].any()
    # Before a known end alone, what is written first has nothing before it, the rest has read all.
    layout = token_layout(segments, 4, known.at[:, :4].set(False), jnp.array([single]))
    _, told, blind = (np.asarray(x)[0] for x in previous_latent(layout, layout))
    assert not told[0] and told[4] and not blind[told].any()


@pytest.mark.slow
def test_the_features_just_before_are_told_in_training_to_a_share(blocks):
    experiment, models, params, batch = blocks
    layout = token_layout(jnp.asarray(batch["segments"]), 4, single_B=jnp.ones(8, bool))
    shape = layout.segment_ids_BxN.shape
    z = jax.random.normal(jax.random.key(0), (*shape, models.vae.latent_channels))

    def logits(share, key=None, z_clean=z):
        diffusion = dataclasses.replace(experiment.diffusion, next_token_prior=share)
        asked = dataclasses.replace(models, has_prior=share > 0)
        denoiser = Denoiser.create(
            asked, params, diffusion, LatentStats.create(models.vae.latent_channels)
        )
        cache = denoiser.prefill(z_clean, jnp.full(shape, OBSERVED), layout).cache
        denoiser = dataclasses.replace(denoiser, dropout_key=key)
        t, state = jnp.full(shape, 0.9), jnp.full(shape, GENERATED)
        inputs = NoisyInputs(-z, t, state, jnp.zeros_like(z), layout)
        return denoiser.denoise(inputs, cache).logits_BxLxV

    told = np.asarray(previous_latent(layout, layout)[1])
    without, with_all = logits(0.0), logits(0.5)
    moved = np.asarray(jnp.abs(with_all - without).max(-1) > 1e-4)
    assert (moved == told).all()
    some = np.asarray(jnp.abs(logits(0.5, jax.random.key(3)) - without).max(-1) > 1e-4)
    assert not (some & ~told).any() and 0.35 < some.sum() / told.sum() < 0.65

    # Of what is yet to be written nothing is told.
    def first_half(z_clean):
        return jnp.sum(jnp.square(logits(1.0, z_clean=z_clean)[:, : shape[1] // 2]))

    reach = np.asarray(jnp.abs(jax.grad(first_half)(z)).max(-1) > 1e-9)
    assert reach[:, : shape[1] // 2 - 1].any() and not reach[:, shape[1] // 2 - 1 :].any()


def test_what_is_foreseen_is_changed_by_noisy_latents_beside_it_alone(blocks):
    """In blocks of one, and beside pure noise, the clean text's own next token is what counts."""
    experiment, models, params, batch = blocks
    layout = token_layout(jnp.asarray(batch["segments"]), 4, single_B=jnp.arange(8) % 2 == 0)
    shape = layout.segment_ids_BxN.shape
    denoiser = Denoiser.create(
        models, params, experiment.diffusion, LatentStats.create(models.vae.latent_channels)
    )
    z = jax.random.normal(jax.random.key(0), (*shape, models.vae.latent_channels))
    clean = denoiser.prefill(z, jnp.full(shape, OBSERVED), layout)
    _, told, _ = previous_latent(layout, layout)
    foreseen = jnp.roll(denoiser.read(clean.features_BxNxM, layout), 1, axis=1)

    def logits(t_BxN):
        inputs = NoisyInputs(z, t_BxN, jnp.full(shape, GENERATED), jnp.zeros_like(z), layout)
        return denoiser.denoise(inputs, clean.cache).logits_BxLxV

    def moved(t_BxN):
        away = jnp.abs(logits(t_BxN) - foreseen).max(-1) > 1e-3
        return np.asarray(away)[np.asarray(told)]

    single = np.broadcast_to(np.asarray(layout.block_ids_BxN == layout.positions_BxN), shape)
    single = single[np.asarray(told)]
    assert 0 < single.sum() < single.size
    assert not moved(jnp.ones(shape)).any()
    assert (moved(jnp.full(shape, 0.5)) == ~single).all()
    # One latent that is nearly clean is news enough, unless it is the own one.
    first = layout.positions_BxN % 4 == 0
    assert not moved(jnp.where(first, 0.1, 1.0)).any()
    assert (moved(jnp.where(layout.positions_BxN % 4 == 2, 0.1, 1.0)) == ~single).all()


def test_in_blocks_of_one_what_is_foreseen_is_not_looked_at_again(blocks):
    """A noisy pass that would give nan is left out where all are told, and taken for all where
    one row is not."""
    experiment, models, params, batch = blocks
    denoiser = Denoiser.create(
        models, params, experiment.diffusion, LatentStats.create(models.vae.latent_channels)
    )
    marks = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params["dit"]["begin"])
    poisoned = params | {"dit": params["dit"] | {"begin": marks}}
    z = jax.random.normal(jax.random.key(0), (8, 2, models.vae.latent_channels))

    def second_of(layout):
        clean = denoiser.prefill(z[:, :1], jnp.full((8, 1), OBSERVED), layout.slice(0, 1))
        noisy = z[:, 1:], jnp.ones((8, 1)), jnp.full((8, 1), GENERATED), 0 * z[:, 1:]
        writing = dataclasses.replace(denoiser, params=poisoned)
        inputs = NoisyInputs(*noisy, layout.slice(1, 1))
        said = writing.denoise(inputs, clean.cache).logits_BxLxV
        return said, denoiser.read(clean.features_BxNxM, layout.slice(0, 1))

    segments = jnp.asarray(batch["segments"])[:, :2]
    np.testing.assert_allclose(*second_of(token_layout(segments, 1)), atol=1e-5)
    # The second latent of one row is read first, so that the other foretells nothing of it.
    given = jnp.zeros((8, 2), bool).at[3, 1].set(True)
    assert jnp.isnan(second_of(token_layout(segments, 1, given))[0]).all()


def test_the_first_latent_of_a_hole_is_looked_at_for_the_sake_of_what_follows(blocks):
    experiment, models, params, batch = blocks
    denoiser = Denoiser.create(
        models, params, experiment.diffusion, LatentStats.create(models.vae.latent_channels)
    )
    z = jax.random.normal(jax.random.key(0), (8, 4, models.vae.latent_channels))
    known = jnp.arange(4) != 1

    def logits(z, known):
        known_BxN = jnp.broadcast_to(known, (8, 4))
        layout = token_layout(jnp.asarray(batch["segments"])[:, :4], 1, known_BxN)
        cache = denoiser.prefill(z, jnp.full((8, 4), OBSERVED), layout).cache
        noisy = 0 * z[:, 1:2], jnp.ones((8, 1)), jnp.full((8, 1), GENERATED), 0 * z[:, 1:2]
        return denoiser.denoise(NoisyInputs(*noisy, layout.slice(1, 1)), cache).logits_BxLxV

    changed = z.at[:, 3].add(1.0)
    moved = jnp.abs(logits(changed, known) - logits(z, known)).max((1, 2)) > 1e-4
    assert moved.all()
    unknown = jnp.arange(4) < 1
    np.testing.assert_array_equal(logits(changed, unknown), logits(z, unknown))
