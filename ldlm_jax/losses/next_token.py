"""Next-token prediction from the prefill, so that its features are a prior for what comes next.

Shape letters: B rows, L tokens, N latents, M width.
"""

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.token_layout import TokenLayout


def next_is_unread(layout: TokenLayout) -> jax.Array:
    """True (B, N) where a position's successor is of its document and not attended to by it."""
    segments_BxN, blocks_BxN = layout.segment_ids_BxN, layout.block_ids_BxN
    same = (segments_BxN[:, 1:] == segments_BxN[:, :-1]) & (segments_BxN[:, 1:] > 0)
    return jnp.pad(same & (blocks_BxN[:, 1:] >= blocks_BxN[:, :-1]), ((0, 0), (0, 1)))


def next_token_loss(
    denoiser: Denoiser, features_BxNxM: jax.Array, tokens_BxL: jax.Array, layout: TokenLayout
) -> jax.Array:
    """Mean cross-entropy of the tokens of the latent after each, where it has not been attended to.

    The prefill (``Denoiser.prefill``) shares its weights with the noisy pass, and has a token to
    learn from at every position, as an autoregressive model has (cf. the two streams of Yang et al.
    2019, "XLNet").

    Args:
      denoiser: with a trunk that the decoder shares.
      features_BxNxM: of the prefill.
      tokens_BxL: of the text.
      layout: of the latents.
    """
    count = denoiser.networks.vae.tokens_per_latent
    metrics = denoiser.score(features_BxNxM, layout, jnp.roll(tokens_BxL, -count, axis=1))
    return masked_mean(metrics.loss_BxL, jnp.repeat(next_is_unread(layout), count, axis=1))
