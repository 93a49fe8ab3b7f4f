"""The denoising error of held-out text on a fixed grid of times."""

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.dit import GENERATED, OBSERVED, NoisyInputs
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import Networks

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@jit(static_argnames=("networks", "diffusion"))
def errors_at(
    params, latents, batch, key, t, *, networks: Networks, diffusion: DiffusionConfig
):  # fmt: skip
    """Sums of squared errors and of correct tokens at one time, and the counts they are out of."""
    layout = latent_layout(batch["segments"], networks, diffusion)
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    shape, cache = layout.segment_ids_BxN.shape, None
    z_0_BxNxD = denoiser.encode(batch["tokens"], layout, jnp.zeros(shape, bool))
    t_BxN, noise_BxNxD = jnp.full(shape, t), jax.random.normal(key, z_0_BxNxD.shape)
    z_t_BxNxD = diffusion.noise.interpolate(z_0_BxNxD, noise_BxNxD, t_BxN)
    if diffusion.block_size:
        cache = denoiser.prefill(z_0_BxNxD, jnp.full(shape, OBSERVED), layout).cache
    clean_BxNxD = jnp.zeros_like(z_0_BxNxD)
    for _ in range(2 if diffusion.self_condition > 0 else 1):
        inputs = NoisyInputs(z_t_BxNxD, t_BxN, jnp.full(shape, GENERATED), clean_BxNxD, layout)
        prediction = denoiser.denoise(inputs, cache, batch["tokens"])
        clean_BxNxD = prediction.clean_BxNxD
    valid_BxN, valid_BxL = layout.in_document_BxN, batch["segments"] > 0
    error_BxN = jnp.mean(jnp.square(clean_BxNxD - z_0_BxNxD), axis=-1)
    correct_BxL = prediction.metrics.correct_BxL & valid_BxL
    return [
        (jnp.sum(error_BxN * valid_BxN), jnp.sum(valid_BxN)),
        (jnp.sum(correct_BxL), jnp.sum(valid_BxL)),
    ]


def evaluate(context: EvalContext) -> Results:
    """Mean squared error of clean latents (variance 1) at each of ``TIMES``, and their mean.

    Self-conditioned models are given their own first estimate. ``accuracy`` is the share of tokens
    that decode rightly from the estimate, ``accuracy_mean`` its mean over the times: unlike the
    error it can be compared between latent spaces.
    """
    results, by_time = {}, [context.mean_over_batches(errors_at, t) for t in TIMES]
    for kind, values in zip(("error", "accuracy"), zip(*by_time, strict=True), strict=True):
        results |= {f"denoising/{kind}_t_{t:g}": v for t, v in zip(TIMES, values, strict=True)}
        results[f"denoising/{kind}_mean"] = sum(values) / len(values)
    return results
