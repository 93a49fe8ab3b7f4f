"""The diffusion loss: error of the clean latents, and cross-entropy of the tokens read from them.

Shape letters: B rows, N latents, D latent channels, L tokens, M width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.time_sampling import draw_quantiles
from ldlm_jax.losses.batch import Batch
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.dit import GENERATED, OBSERVED, KVCache, NoisyInputs


class DenoisingLoss(NamedTuple):
    """Losses of one noisy pass.

    Attributes:
      latents: error of the clean latents over the positions to generate.
      tokens: cross-entropy of the tokens; None unless asked for.
      hidden_BxNxM: output of the DiT's ``hidden_layer``; None without one.
    """

    latents: jax.Array
    tokens: jax.Array | None
    hidden_BxNxM: jax.Array | None


def denoising_loss(
    denoiser: Denoiser, key, batch: Batch, z_0_BxNxD, conditioning_BxN, cache: KVCache | None,
    *, tokens: bool,
) -> DenoisingLoss:  # fmt: skip
    """Corrupt clean latents at drawn times, denoise them, and compare.

    Args:
      denoiser: what learns.
      key: random key.
      batch: the text.
      z_0_BxNxD: its clean latents, normalised.
      conditioning_BxN: GENERATED, OBSERVED or HIDDEN.
      cache: of the clean text, for models with blocks.
      tokens: also read the tokens.
    """
    config, observed_BxN = denoiser.config, conditioning_BxN != GENERATED
    time_key, noise_key, self_key = jax.random.split(key, 3)
    B, N, D = z_0_BxNxD.shape
    u_BxN = draw_quantiles(
        time_key, (B, N), config.block_size, config.per_token_times, batch.single_B
    )
    t_BxN = jnp.where(observed_BxN, 0.0, config.times(D).quantile(u_BxN))
    noise_BxNxD = jax.random.normal(noise_key, (B, N, D))
    z_t_BxNxD = config.noise.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
    blank_BxNxD = jnp.zeros_like(z_0_BxNxD)
    inputs = NoisyInputs(z_t_BxNxD, t_BxN, conditioning_BxN, blank_BxNxD, batch.layout)
    if config.self_condition > 0:
        # One draw for the whole batch: the other steps then cost no second evaluation.
        previous_BxNxD = jax.lax.cond(
            jax.random.bernoulli(self_key, config.self_condition),
            lambda: jax.lax.stop_gradient(denoiser.denoise(inputs, cache).clean_BxNxD),
            lambda: blank_BxNxD,
        )
        inputs = inputs._replace(self_condition_BxNxD=previous_BxNxD)
    tokens_BxL = batch.tokens_BxL if tokens else None
    prediction = denoiser.denoise(inputs, cache, tokens_BxL)
    generated_BxN = batch.valid_BxN & ~observed_BxN
    error_BxN = config.objective.loss(prediction.clean_BxNxD, z_0_BxNxD, t_BxN)
    loss, token_loss = masked_mean(error_BxN, generated_BxN), None
    if tokens_BxL is not None:
        # Tokens of observed text are read off clean latents: the decoder's daily work.
        scored_BxN = generated_BxN | (conditioning_BxN == OBSERVED)
        scored_BxL = jnp.repeat(scored_BxN, denoiser.networks.vae.tokens_per_latent, axis=1)
        token_loss = masked_mean(prediction.metrics.loss_BxL, scored_BxL)
    return DenoisingLoss(loss, token_loss, prediction.hidden_BxNxM)
