"""Of several texts, one: how likely the model finds a text, and how like the others it is."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldlm_jax.data.tokenizer import EOS
from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.solvers import row_keys, row_noise
from ldlm_jax.errors import UserError
from ldlm_jax.models.denoiser import Denoiser
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.models.token_layout import Places, lay_out

# At so many times a text is asked for, where it is asked for in noise.
_TIMES = 8


def log_likelihood(
    denoiser: Denoiser, tokens_BxL: jax.Array, places: Places, known_BxN: jax.Array, keys_B
) -> jax.Array:
    """How likely the model finds what it wrote, (B,): logarithm, mean over the tokens written.

    Of a model that foretells (``diffusion.foresight``) one token after another; and there known
    text counts that follows, by its whole likelihood: of several fillings of a hole, drawn as what
    stands before it lets expect, each is worth what it makes of the rest (Bayes' rule). Any other
    model is asked for what it wrote in noise, see ``_in_noise``.

    Args:
      denoiser: DiT and decoder.
      tokens_BxL: texts; what stands after their end tokens does not count.
      places: of their latents.
      known_BxN: true where the text was given.
      keys_B: random keys.
    """
    to_write_BxN = ~known_BxN & (places.segments_BxN > 0)
    begun_BxN = (jnp.cumsum(to_write_BxN, axis=1) > 0) & (places.segments_BxN > 0)
    per_latent = denoiser.models.vae.tokens_per_latent
    to_write_BxL, begun_BxL = (jnp.repeat(x, per_latent, axis=1) for x in (to_write_BxN, begun_BxN))
    ends_BxL = (tokens_BxL == EOS) & begun_BxL
    begun_BxL &= jnp.cumsum(ends_BxL, axis=1) - ends_BxL == 0
    written_BxL = begun_BxL & to_write_BxL
    if not denoiser.config.foresight:
        loss_BxL = _in_noise(denoiser, tokens_BxL, places, known_BxN, keys_B)
        return -jax.vmap(masked_mean)(loss_BxL, written_BxL)
    loss_BxL = _one_by_one(denoiser, tokens_BxL, places)
    after_B = jnp.sum(loss_BxL * (begun_BxL & ~to_write_BxL), axis=1)
    return -jax.vmap(masked_mean)(loss_BxL, written_BxL) - after_B


def _one_by_one(denoiser: Denoiser, tokens_BxL: jax.Array, places: Places) -> jax.Array:
    """Cross-entropy (B, L) of each latent's tokens given the clean text before it and no other."""
    places = lay_out(places.segments_BxN, block_size=1)
    nowhere_BxN = jnp.zeros(places.segments_BxN.shape, bool)
    z_0_BxNxD = denoiser.encode(tokens_BxL, places, nowhere_BxN)
    memory = denoiser.remember(z_0_BxNxD, jnp.full(nowhere_BxN.shape, KNOWN), places)
    # Pure noise tells nothing, so that none is as good as any.
    blank_BxNxD = jnp.zeros_like(z_0_BxNxD)
    t_BxN, state_BxN = jnp.ones(nowhere_BxN.shape), jnp.full(nowhere_BxN.shape, UNKNOWN)
    inputs = blank_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory, tokens_BxL
    return denoiser(*inputs).scores.loss_BxL


def _in_noise(denoiser: Denoiser, tokens_BxL, places: Places, known_BxN, keys_B) -> jax.Array:
    """Cross-entropy (B, L) of the tokens given their own noisy latents and all that is known.

    The mean over the training law of times: what ``diffusion.token_loss`` trains, no bound on the
    likelihood of the text, but it tells apart texts of one request.
    """
    z_0_BxNxD = denoiser.encode(tokens_BxL, places, known_BxN)
    memory = None
    if places.block_size:
        memory = denoiser.remember(z_0_BxNxD, jnp.full(known_BxN.shape, KNOWN), places)
    state_BxN = jnp.where(known_BxN, KNOWN, UNKNOWN)
    law = denoiser.config.law(z_0_BxNxD.shape[-1])

    def at_time(index):
        t_BxN = jnp.where(known_BxN, 0.0, law.quantile((index + 0.5) / _TIMES))
        noise_BxNxD = row_noise(row_keys(keys_B, index), z_0_BxNxD.shape[1:])
        z_t_BxNxD = path.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
        blank_BxNxD = jnp.zeros_like(z_t_BxNxD)
        said = denoiser(z_t_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory, tokens_BxL)
        return said.scores.loss_BxL

    return jnp.mean(jax.lax.map(at_time, jnp.arange(_TIMES)), axis=0)


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
