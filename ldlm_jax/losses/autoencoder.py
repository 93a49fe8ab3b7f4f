"""The autoencoder's losses, and the corruption that makes its latents predictive and forgiving.

Shape letters: B rows, L tokens, N latents, D latent channels.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from ldlm_jax.data.special_ids import MASK
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.losses.batch import Batch
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.text_vae import Posterior
from ldlm_jax.validate import Share


@dataclass(frozen=True)
class AutoencodingConfig:
    """How text and latents are corrupted.

    Attributes:
      token_mask: largest share of tokens masked for the encoder; each row draws its own share
        uniformly from 0 to this.
      decoder_noise: largest standard deviation of the noise on latents before decoding, in units
        of the latents' own; each latent draws its own uniformly from 0 to this.
      latent_dropout: share of latents that the decoder is given as zeros.
    """

    token_mask: Share = 0.3
    decoder_noise: Annotated[float, "[0, inf)"] = 1.5
    latent_dropout: Share = 0.1


def draw_latents(key, posterior: Posterior) -> jax.Array:
    """Raw latents (B, N, D): one draw from the encoder's Gaussians."""
    noise = jax.random.normal(key, posterior.mean_BxNxD.shape)
    return posterior.mean_BxNxD + jnp.exp(0.5 * posterior.logvar_BxNxD) * noise


def latent_moments(z_BxNxD, valid_BxN) -> tuple[jax.Array, jax.Array]:
    """First and second moment (D,) of the latents in use, without gradient."""
    count = jnp.maximum(valid_BxN.sum(), 1)

    def mean(x_BxNxD):
        total_D = jnp.sum(jnp.where(valid_BxN[..., None], x_BxNxD, 0.0), (0, 1))
        return jax.lax.stop_gradient(total_D / count)

    return mean(z_BxNxD), mean(jnp.square(z_BxNxD))


def mask_tokens(key, tokens_BxL, largest_share: float) -> jax.Array:
    """Tokens of which each row has a share masked, drawn uniformly from 0 to the largest."""
    share_key, place_key = jax.random.split(key)
    share_Bx1 = largest_share * jax.random.uniform(share_key, (tokens_BxL.shape[0], 1))
    return jnp.where(jax.random.uniform(place_key, tokens_BxL.shape) < share_Bx1, MASK, tokens_BxL)


def kl_loss(posterior: Posterior, valid_BxN) -> jax.Array:
    """Divergence from the standard normal, nats, mean over channels and valid positions."""
    mean, logvar = posterior.mean_BxNxD, posterior.logvar_BxNxD
    return masked_mean(0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1), valid_BxN)


def reconstruction_loss(
    config: AutoencodingConfig, denoiser: Denoiser, key, z_BxNxD, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the tokens given corrupted latents, and the share of tokens got right.

    Args:
      config: how latents are corrupted.
      denoiser: whose decoder reads them.
      key: random key.
      z_BxNxD: normalised latents.
      batch: the text.
    """
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    shape = z_BxNxD.shape[:2]
    sigma_BxN = config.decoder_noise * jax.random.uniform(level_key, shape)
    z_BxNxD = z_BxNxD + sigma_BxN[..., None] * jax.random.normal(noise_key, z_BxNxD.shape)
    kept_BxN = jax.random.bernoulli(drop_key, 1 - config.latent_dropout, shape)
    z_BxNxD = jnp.where(kept_BxN[..., None], z_BxNxD, 0.0)
    metrics = denoiser.decode_metrics(z_BxNxD, sigma_BxN, batch.layout, batch.tokens_BxL)
    valid_BxL = batch.valid_BxL
    return masked_mean(metrics.loss_BxL, valid_BxL), masked_mean(metrics.correct_BxL, valid_BxL)
