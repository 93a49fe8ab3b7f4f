"""What the denoiser adds to the DiT: Bayes' rule over tokens."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from ldlm_jax.config import load_config, resolve
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.diffusion.schedule import SCHEDULES
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.dit import GENERATED, NoisyInputs
from ldlm_jax.models.masks import block_causal
from ldlm_jax.models.networks import LatentStats
from ldlm_jax.models.token_layout import token_layout
from ldlm_jax.sampling.logits import logits_processor, top_p_filter

LAYOUT = token_layout(jnp.ones((1, 8), jnp.int32))
ONE = jnp.ones(1)


def inputs(z, t):
    """Eight latents at one time, with nothing observed."""
    generated, z = jnp.full((1, 8), GENERATED), jnp.asarray(z, jnp.float32)
    return NoisyInputs(z, jnp.full((1, 8), t), generated, jnp.zeros_like(z), LAYOUT)


@pytest.fixture(scope="module")
def network():
    """An untrained network of 259 + 7 tokens: its outputs and its head are zero or small."""
    changes = ["text_vae.encoder_layers=0", "text_vae.decoder_layers=0",
               "diffusion.token_posterior=True"]  # fmt: skip
    experiment = resolve(load_config("configs/debug.py", changes))
    models = experiment.networks(266)
    params = meta.unbox(models.init(jax.random.key(0), 8))
    return models, experiment.diffusion, params


def without_context(network, **options):
    """A denoiser whose head says nothing, so that only the noisy latents speak."""
    models, config, params = network
    params = dict(params, text_vae=dict(params["text_vae"]))
    head = params["text_vae"]["decoder"]
    params["text_vae"]["decoder"] = jax.tree.map(jnp.zeros_like, head)
    latents = LatentStats.create(models.vae.latent_channels)
    return Denoiser.create(models, params, config, latents, **options)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.7, 0.95])
def test_the_estimate_is_the_posterior_mean(network, t, name):
    """Against Bayes' rule by hand: Gaussian densities, normalised, averaged over embeddings."""
    models, config, params = network
    denoiser = without_context((models, dataclasses.replace(config, schedule=name), params))
    alpha, sigma = (
        float(f(jnp.float32(t))) for f in (SCHEDULES[name].alpha, SCHEDULES[name].sigma)
    )
    codes = np.asarray(denoiser.posterior.embeddings_VxD, np.float64)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, codes.shape[1]))
    z = (alpha * codes[10:18] + sigma * noise)[None]
    said = denoiser.denoise(inputs(z, t))
    variance = sigma**2 + alpha**2 * DiffusionConfig().token_variance
    log_density = -((z[0][:, None] - alpha * codes) ** 2).sum(-1) / (2 * variance)
    posterior = np.exp(log_density - log_density.max(-1, keepdims=True))
    posterior /= posterior.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(said.logits_BxLxV)[0], posterior, atol=2e-3)
    np.testing.assert_allclose(said.clean_BxNxD[0], posterior @ codes, atol=2e-2)


def test_near_the_data_the_latent_decides_and_in_pure_noise_the_context(network):
    models, config, params = network
    denoiser = Denoiser.create(models, params, config, LatentStats.create(8))
    codes = denoiser.posterior.embeddings_VxD[None, 10:18]

    def logits(z, t):
        return denoiser.denoise(inputs(z, t)).logits_BxLxV

    assert jnp.argmax(logits(codes, 0.01), -1).tolist() == [list(range(10, 18))]
    # Of pure noise the DiT is given nothing.
    blank = inputs(jnp.zeros_like(codes), 1.0)
    said = models.dit.apply({"params": params["dit"]}, blank, block_causal(LAYOUT))
    chex.assert_trees_all_close(
        logits(codes, 1.0), denoiser.read(said.features_BxNxM, LAYOUT), atol=1e-4
    )


def test_drawn_tokens_follow_their_logits_and_their_rows_keys(network):
    denoiser = without_context(network)
    logits = jax.random.normal(jax.random.key(0), (1, 1, 266)).at[..., 7].add(4.0)
    drawn = denoiser.posterior.draw(
        jnp.tile(logits, (50, 400, 1)), jax.random.split(jax.random.key(1), 50)
    )
    distance = jnp.abs(drawn[..., None, :] - denoiser.posterior.embeddings_VxD).max(-1)
    assert float(distance.min(-1).max()) < 1e-6
    tokens = np.asarray(jnp.argmin(distance, -1))
    share = np.bincount(tokens.ravel(), minlength=266) / tokens.size
    expected = np.asarray(jax.nn.softmax(logits[0, 0]))
    # 20,000 draws: the standard error of a share p is sqrt(p / 20,000).
    assert np.abs(share - expected).max() < 5 * np.sqrt(expected.max() / 20_000)
    assert len({tuple(row) for row in tokens}) == 50
    certain = jnp.full((3, 2, 266), -1e4).at[..., 265].set(0.0)
    chex.assert_trees_all_equal(
        denoiser.posterior.draw(certain, jax.random.split(jax.random.key(2), 3)),
        jnp.broadcast_to(denoiser.posterior.embeddings_VxD[265], (3, 2, 8)),
    )


def test_temperature_sharpens_the_context_alone(network):
    models, config, params = network
    latents = LatentStats.create(8)
    warm = Denoiser.create(models, params, config, latents)
    cold = dataclasses.replace(warm, logits_processor=logits_processor(0.5 * ONE))
    args = inputs(jnp.ones((1, 8, 8)), 0.5)
    evidence = without_context(network).denoise(args).logits_BxLxV
    context = warm.denoise(args).logits_BxLxV - evidence
    assert float(jnp.abs(context).max()) > 0.1
    chex.assert_trees_all_close(cold.denoise(args).logits_BxLxV, 2 * context + evidence, atol=1e-3)


@pytest.mark.slow
def test_latents_learn_from_the_cross_entropy_and_not_from_the_squared_error(network):
    """Codes that followed the squared error would all become one."""
    models, config, params = network

    def encoder_gradient(of, t):
        def value(params):
            denoiser = Denoiser.create(models, params, config, LatentStats.create(8))
            said = denoiser.denoise(inputs(jnp.ones((1, 8, 8)), t))
            return jnp.sum(jnp.sin(getattr(said, of)))

        grads = jax.grad(value)(params)["text_vae"]["encoder"]
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))

    assert encoder_gradient("logits_BxLxV", 0.7) > 0
    # In pure noise the posterior does not depend on the codes; nor may the estimate teach them.
    assert encoder_gradient("clean_BxNxD", 1.0) == 0


@pytest.mark.parametrize("top_p", [0.3, 0.7, 0.95, 1.0])
def test_the_nucleus_is_the_fewest_tokens_that_add_up(top_p):
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 2, 50))
    kept = np.asarray(top_p_filter(logits, jnp.full((4, 1, 1), top_p)) == logits)
    probability = np.asarray(jax.nn.softmax(logits))
    for row, keep in zip(probability.reshape(-1, 50), kept.reshape(-1, 50), strict=True):
        order = np.argsort(-row)
        fewest = int(np.searchsorted(np.cumsum(row[order]), top_p - 1e-6)) + 1
        assert set(np.flatnonzero(keep)) == set(order[: fewest if top_p < 1 else None])


def test_each_row_has_a_nucleus_of_its_own():
    logits = jnp.log(jnp.array([[[0.6, 0.3, 0.1]], [[0.6, 0.3, 0.1]]]))
    cut = top_p_filter(logits, jnp.array([0.5, 0.8])[:, None, None])
    kept = cut == logits
    assert kept[:, 0].tolist() == [[True, False, False], [True, True, False]]
    # Nothing of what is outside is ever drawn.
    assert float(jax.nn.softmax(cut)[~kept].max()) < 1e-12


def test_what_a_latent_says_overrules_the_nucleus(network):
    """Or a drawn token would be another in the next step, whose context may not propose it."""
    models, config, params = network
    latents = LatentStats.create(models.vae.latent_channels)
    process = logits_processor(ONE, 0.01 * ONE)
    denoiser = Denoiser.create(models, params, config, latents, logits_processor=process)
    tokens = jnp.arange(20, 28)
    codes = denoiser.posterior.embeddings_VxD[tokens][None]
    z = config.noise.interpolate(
        codes, jax.random.normal(jax.random.key(0), codes.shape), jnp.full((1, 8), 0.1)
    )
    said = denoiser.denoise(inputs(z, 0.1))
    proposed = denoiser.denoise(inputs(jnp.zeros_like(z), 1.0))
    assert (jnp.argmax(proposed.logits_BxLxV, -1)[0] != tokens).all()
    assert (jnp.argmax(said.logits_BxLxV, -1)[0] == tokens).all()
