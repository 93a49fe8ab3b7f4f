"""The second lesson of the clean text: each next token, where it is not seen."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldlm_jax.config import load_config, resolve
from ldlm_jax.data.build import prepare
from ldlm_jax.data.pipeline import train_batches
from ldlm_jax.denoiser import Denoiser
from ldlm_jax.models.dit import KNOWN
from ldlm_jax.models.places import lay_out
from ldlm_jax.next_token import ahead_BxN, next_token_loss
from ldlm_jax.phases import Phase
from ldlm_jax.train_state import LatentStats
from ldlm_jax.train_step import fused_loss


@pytest.fixture(scope="module")
def blocks(overrides):
    """Experiment in blocks of four, its networks with parameters nowhere zero, and a batch."""
    changes = ["text_vae.decoder_layers=0", "diffusion.block_size=4", "data.round_to=4",
               "dit.time_tokens=0", "diffusion.blocks_of_one=0.5"]  # fmt: skip
    experiment = resolve(load_config("configs/debug.py", [*overrides, *changes]))
    prepared = prepare(experiment.data)
    models = experiment.models(prepared.tokenizer.vocab_size)
    params = models.init(jax.random.key(0), experiment.data.window)
    keys = iter(jax.random.split(jax.random.key(9), 1000))
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)
    return experiment, models, params, next(train_batches(prepared, experiment.data, 8))


def test_only_what_is_not_seen_is_asked_for():
    """Blocks of four, blocks of one, and a known hole, over two documents and empty space."""
    segments = jnp.array([[1] * 8 + [2] * 3 + [0]] * 3)
    known = jnp.zeros((3, 12), bool).at[2, 2:6].set(True)
    places = lay_out(segments, 4, known, jnp.array([False, True, True]))
    asked = [np.flatnonzero(row).tolist() for row in np.asarray(ahead_BxN(places))]
    # All that is known is read before position 2 would be written.
    assert asked == [[3], [0, 1, 2, 3, 4, 5, 6, 8, 9], [0, 2, 3, 4, 5, 6, 8, 9]]


def test_no_position_sees_what_it_is_asked_for(blocks):
    """The last block is asked for nothing more, so its latents must not move the loss."""
    experiment, models, params, _ = blocks
    denoiser = Denoiser.create(
        models, params, experiment.diffusion, LatentStats.create(models.vae.latent_channels)
    )
    places = lay_out(jnp.ones((2, 12), jnp.int32), 4, single_B=jnp.array([True, False]))
    tokens = jnp.tile(jnp.arange(20, 32), (2, 1))

    def loss(z_BxNxD):
        features = denoiser.recall(z_BxNxD, jnp.full((2, 12), KNOWN), places).features_BxNxM
        return next_token_loss(denoiser, features, tokens, places)

    z = jax.random.normal(jax.random.key(0), (2, 12, models.vae.latent_channels))
    value, gradient = jax.value_and_grad(loss)(z)
    moves = [np.flatnonzero(row).tolist() for row in np.asarray(jnp.abs(gradient).max(-1) > 1e-7)]
    assert moves == [list(range(11)), list(range(8))]
    features = denoiser.recall(z, jnp.full((2, 12), KNOWN), places).features_BxNxM
    told = jax.nn.log_softmax(denoiser.read(features, places))
    asked = [-told[0, i, 21 + i] for i in range(11)] + [-told[1, i, 21 + i] for i in (3, 7)]
    assert float(value) == pytest.approx(float(np.mean(asked)), rel=1e-4)


def test_the_fused_step_adds_it_by_its_weight(blocks):
    experiment, models, params, batch = blocks
    recipe = experiment.recipe(models)
    only = Phase(reconstruction=0.0, kl=0.0, diffusion=1.0, alignment=0.0)

    def with_weight(weight):
        diffusion = dataclasses.replace(recipe.diffusion, next_token_loss=weight)
        run = partial(
            fused_loss, phase=only, recipe=dataclasses.replace(recipe, diffusion=diffusion)
        )
        stats = LatentStats.create(models.vae.latent_channels)
        return float(jax.jit(run)(params, batch, stats, jax.random.key(1), 0)[0])

    without, once, thrice = map(with_weight, (0.0, 1.0, 3.0))
    assert once - without > 1.0  # an untrained network is far from certain
    assert thrice - without == pytest.approx(3 * (once - without), rel=1e-3)
