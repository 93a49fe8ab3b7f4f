"""The autoencoder's own losses, and how its life is made hard.

Shape letters: B rows, L tokens, N latents, D latent channels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import MASK
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.errors import UserError, check_shares
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.text_vae import Posterior
from ldlm_jax.models.token_layout import Places


@dataclass(frozen=True)
class AutoencodingConfig:
    """How the autoencoder's life is made hard, so that its latents are predictive and forgiving.

    Attributes:
      token_mask: largest share of tokens hidden from the encoder; each row draws its own share
        uniformly from 0 to this.
      decoder_noise: largest standard deviation of the noise on latents before decoding, in units
        of the latents' own; each latent draws its own uniformly from 0 to this.
      latent_dropout: share of latents that the decoder sees as zeros.
    """

    token_mask: float = 0.3
    decoder_noise: float = 1.5
    latent_dropout: float = 0.1

    def __post_init__(self):
        check_shares("autoencoding", self, ("token_mask", "latent_dropout"))
        if self.decoder_noise < 0:
            raise UserError(f"autoencoding.decoder_noise = {self.decoder_noise}: at least 0.")


def draw_latents(key, posterior: Posterior) -> jax.Array:
    """Raw latents (B, N, D): one draw from the encoder's Gaussians."""
    noise = jax.random.normal(key, posterior.mean_BxNxD.shape)
    return posterior.mean_BxNxD + jnp.exp(0.5 * posterior.logvar_BxNxD) * noise


def hide_tokens(key, tokens_BxL, largest_share: float) -> jax.Array:
    """Tokens of which each row has a share masked, drawn uniformly from 0 to the largest."""
    share_key, place_key = jax.random.split(key)
    share_Bx1 = largest_share * jax.random.uniform(share_key, (tokens_BxL.shape[0], 1))
    return jnp.where(jax.random.uniform(place_key, tokens_BxL.shape) < share_Bx1, MASK, tokens_BxL)


def kl_loss(posterior: Posterior, valid_BxN) -> jax.Array:
    """Divergence from the standard normal, mean over channels and valid places."""
    mean, logvar = posterior.mean_BxNxD, posterior.logvar_BxNxD
    return masked_mean(0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=-1), valid_BxN)


def reconstruction_loss(
    config: AutoencodingConfig,
    denoiser: Denoiser,
    key,
    z_BxNxD,
    tokens_BxL,
    valid_BxL,
    places: Places,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the tokens given corrupted latents, and the share of tokens got right.

    Args:
      config: how latents are corrupted.
      denoiser: whose decoder reads them.
      key: random key.
      z_BxNxD: normalised latents.
      tokens_BxL: the text.
      valid_BxL: which tokens are text.
      places: of the latents.
    """
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    shape = z_BxNxD.shape[:2]
    sigma_BxN = config.decoder_noise * jax.random.uniform(level_key, shape)
    z_BxNxD = z_BxNxD + sigma_BxN[..., None] * jax.random.normal(noise_key, z_BxNxD.shape)
    kept_BxN = jax.random.bernoulli(drop_key, 1 - config.latent_dropout, shape)
    z_BxNxD = jnp.where(kept_BxN[..., None], z_BxNxD, 0.0)
    scores = denoiser.token_scores(z_BxNxD, sigma_BxN, places, tokens_BxL)
    return masked_mean(scores.loss_BxL, valid_BxL), masked_mean(scores.hit_BxL, valid_BxL)
