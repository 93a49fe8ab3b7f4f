"""The clean text is asked for what comes next, so that what is remembered of it foretells.

Shape letters: B rows, L tokens, N latents, M width.
"""

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.token_layout import Places


def ahead_BxN(places: Places) -> jax.Array:
    """True where a position is followed by one of its document that it has not read."""
    segments_BxN, blocks_BxN = places.segments_BxN, places.blocks_BxN
    same = (segments_BxN[:, 1:] == segments_BxN[:, :-1]) & (segments_BxN[:, 1:] > 0)
    return jnp.pad(same & (blocks_BxN[:, 1:] >= blocks_BxN[:, :-1]), ((0, 0), (0, 1)))


def next_token_loss(
    denoiser: Denoiser, features_BxNxM: jax.Array, tokens_BxL: jax.Array, places: Places
) -> jax.Array:
    """Mean cross-entropy of the tokens of the latent after each, where it has not been read.

    A second lesson from the pass that makes the memory (``Denoiser.recall``), whose weights are
    those of the noisy pass: it has a token to learn from at every position, as an autoregressive
    model has (cf. the two streams of Yang et al. 2019, "XLNet").

    Args:
      denoiser: with a trunk that the decoder shares.
      features_BxNxM: of the clean latents.
      tokens_BxL: of the text.
      places: of the latents.
    """
    count = denoiser.models.vae.tokens_per_latent
    scores = denoiser.score(features_BxNxM, places, jnp.roll(tokens_BxL, -count, axis=1))
    return masked_mean(scores.loss_BxL, jnp.repeat(ahead_BxN(places), count, axis=1))
