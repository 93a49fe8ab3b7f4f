"""Of several texts, one: by the model's own likelihood, or by likeness to the others.

Shape letters: B rows, L tokens, N latents.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldlm_jax.data.special_ids import EOS
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.rows import row_keys, row_noise
from ldlm_jax.errors import UserError
from ldlm_jax.models.denoiser import Denoiser, Prediction
from ldlm_jax.models.dit import GENERATED, OBSERVED, NoisyInputs
from ldlm_jax.models.token_layout import TokenLayout, token_layout

# Times at which a text is scored, where it is scored in noise.
_TIMES = 8


def log_likelihood(
    denoiser: Denoiser, tokens_BxL: jax.Array, layout: TokenLayout, observed_BxN: jax.Array, keys_B
) -> jax.Array:
    """Log-likelihood (B,) of what was generated, mean over its tokens.

    With a next-token prior, one token after another; and there observed text counts that follows,
    by its whole likelihood: of several fillings of a span, drawn given what stands before it, each
    is worth what it makes of the rest (Bayes' rule). Without one, see ``_in_noise``.

    Args:
      denoiser: DiT and decoder.
      tokens_BxL: texts; what stands after their end tokens does not count.
      layout: of their latents.
      observed_BxN: true where the text was given.
      keys_B: random keys.
    """
    generated_BxN = ~observed_BxN & layout.in_document_BxN
    begun_BxN = (jnp.cumsum(generated_BxN, axis=1) > 0) & layout.in_document_BxN
    count = denoiser.networks.vae.tokens_per_latent
    generated_BxL, begun_BxL = (jnp.repeat(x, count, axis=1) for x in (generated_BxN, begun_BxN))
    ends_BxL = (tokens_BxL == EOS) & begun_BxL
    begun_BxL &= jnp.cumsum(ends_BxL, axis=1) - ends_BxL == 0
    scored_BxL = begun_BxL & generated_BxL
    if not denoiser.config.next_token_prior:
        loss_BxL = _in_noise(denoiser, tokens_BxL, layout, observed_BxN, keys_B)
        return -jax.vmap(masked_mean)(loss_BxL, scored_BxL)
    loss_BxL = one_by_one(denoiser, tokens_BxL, layout).metrics.loss_BxL
    after_B = jnp.sum(loss_BxL * (begun_BxL & ~generated_BxL), axis=1)
    return -jax.vmap(masked_mean)(loss_BxL, scored_BxL) - after_B


def one_by_one(denoiser: Denoiser, tokens_BxL: jax.Array, layout: TokenLayout) -> Prediction:
    """Logits and metrics of each latent's tokens given the clean text before it and no other."""
    layout = token_layout(layout.segment_ids_BxN, block_size=1)
    nowhere_BxN = jnp.zeros(layout.segment_ids_BxN.shape, bool)
    z_0_BxNxD = denoiser.encode(tokens_BxL, layout, nowhere_BxN)
    cache = denoiser.prefill(z_0_BxNxD, jnp.full(nowhere_BxN.shape, OBSERVED), layout).cache
    # Pure noise tells nothing, so that none is as good as any.
    blank_BxNxD, t_BxN = jnp.zeros_like(z_0_BxNxD), jnp.ones(nowhere_BxN.shape)
    generated_BxN = jnp.full(nowhere_BxN.shape, GENERATED)
    inputs = NoisyInputs(blank_BxNxD, t_BxN, generated_BxN, blank_BxNxD, layout)
    return denoiser.denoise(inputs, cache, tokens_BxL)


def _in_noise(denoiser: Denoiser, tokens_BxL, layout: TokenLayout, observed_BxN, keys_B):
    """Cross-entropy (B, L) of the tokens given their own noisy latents and all observed text.

    The mean over the training times: what a phase's weight ``token`` trains, no bound on the
    likelihood of the text, but it tells apart texts of one request.
    """
    z_0_BxNxD, noise = denoiser.encode(tokens_BxL, layout, observed_BxN), denoiser.config.noise
    cache = None
    if layout.block_size:
        cache = denoiser.prefill(z_0_BxNxD, jnp.full(observed_BxN.shape, OBSERVED), layout).cache
    conditioning_BxN = jnp.where(observed_BxN, OBSERVED, GENERATED)
    distribution = denoiser.config.times(z_0_BxNxD.shape[-1])

    def at_time(index):
        t_BxN = jnp.where(observed_BxN, 0.0, distribution.quantile((index + 0.5) / _TIMES))
        noise_BxNxD = row_noise(row_keys(keys_B, index), z_0_BxNxD.shape[1:])
        z_t_BxNxD = noise.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
        inputs = NoisyInputs(z_t_BxNxD, t_BxN, conditioning_BxN, jnp.zeros_like(z_t_BxNxD), layout)
        return denoiser.denoise(inputs, cache, tokens_BxL).metrics.loss_BxL

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
        raise UserError("rerank = 'mbr' needs sacrebleu: pip install '.[eval]'.") from error
    scores = [
        sum(sentence_chrf(text, [other]).score for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return max(range(len(texts)), key=scores.__getitem__)
