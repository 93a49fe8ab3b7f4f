"""Of several texts, one: how likely the model finds a text, and how like the others it is."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import EOS
from ldlm_jax.denoiser import Denoiser
from ldlm_jax.diffusion import path
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.sampler import row_keys, row_noise
from ldlm_jax.errors import UserError
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.models.places import Places

# At so many times a text is asked for.
_TIMES = 8


def log_likelihood(
    denoiser: Denoiser, tokens_BxL: jax.Array, places: Places, known_BxN: jax.Array, keys_B
) -> jax.Array:
    """How likely the model finds the text that it wrote, (B,): logarithm, mean over its tokens.

    The logarithm of the tokens' probabilities given their own noisy latents, the mean over the
    training law of times. It is the negative of what ``diffusion.token_loss`` trains, no bound on
    the likelihood of the text, but tells apart texts of one request.

    Args:
      denoiser: DiT and decoder.
      tokens_BxL: texts; what stands after their end tokens does not count.
      places: of their latents.
      known_BxN: true where the text was given, which does not count either.
      keys_B: random keys.
    """
    z_0_BxNxD = denoiser.encode(tokens_BxL, places, known_BxN)
    memory = None
    if places.block_size:
        memory = denoiser.remember(z_0_BxNxD, jnp.full(known_BxN.shape, KNOWN), places)
    state_BxN = jnp.where(known_BxN, KNOWN, UNKNOWN)
    law = denoiser.config.law(z_0_BxNxD.shape[-1])
    per_latent = denoiser.models.vae.tokens_per_latent
    to_write_BxL = jnp.repeat(~known_BxN & (places.segments_BxN > 0), per_latent, axis=1)
    ends_BxL = (tokens_BxL == EOS) & to_write_BxL
    counts_BxL = to_write_BxL & (jnp.cumsum(ends_BxL, axis=1) - ends_BxL == 0)

    def at_time(index):
        t_BxN = jnp.where(known_BxN, 0.0, law.quantile((index + 0.5) / _TIMES))
        noise_BxNxD = row_noise(row_keys(keys_B, index), z_0_BxNxD.shape[1:])
        z_t_BxNxD = path.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
        blank_BxNxD = jnp.zeros_like(z_t_BxNxD)
        said = denoiser(z_t_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory, tokens_BxL)
        return jax.vmap(masked_mean)(said.scores.loss_BxL, counts_BxL)

    return -jnp.mean(jax.lax.map(at_time, jnp.arange(_TIMES)), axis=0)


def most_like_the_others(texts: Sequence[str]) -> int:
    """Which text is most like the others on average: minimum Bayes risk under chrF.

    (Eikema & Aziz 2022, "Sampling-Based Approximations to Minimum Bayes Risk Decoding"; chrF:
    Popovic 2015.)

    Raises:
      UserError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_chrf
    except ImportError as error:
        raise UserError(
            "choose = 'consensus' needs sacrebleu: pip install 'ldlm_jax[eval]'."
        ) from error
    likeness = [
        sum(sentence_chrf(text, [other]).score for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return max(range(len(texts)), key=likeness.__getitem__)
