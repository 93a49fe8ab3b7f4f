"""The denoising error of held-out text on a fixed grid of times."""

from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion import schedule as path
from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, places_of
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.train_state import Models

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@partial(jax.jit, static_argnames=("models", "diffusion"))
def errors_at(params, latents, batch, key, t, *, models: Models, diffusion: DiffusionConfig):
    """Sums of squared errors and of right tokens at one time, and the counts they are out of."""
    places = places_of(batch["segments"], models, diffusion)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    segments_BxN = places.segments_BxN
    nothing_BxN = jnp.zeros(segments_BxN.shape, bool)
    z_0_BxNxD = denoiser.encode(batch["tokens"], places, nothing_BxN)
    t_BxN = jnp.full(segments_BxN.shape, t)
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(key, z_0_BxNxD.shape), t_BxN)
    state_BxN = jnp.full(segments_BxN.shape, UNKNOWN)
    memory = None
    if diffusion.block_size:
        memory = denoiser.remember(z_0_BxNxD, jnp.full(segments_BxN.shape, KNOWN), places)
    clean_BxNxD = jnp.zeros_like(z_0_BxNxD)
    for _ in range(2 if diffusion.self_condition > 0 else 1):
        said = denoiser(z_t_BxNxD, t_BxN, state_BxN, clean_BxNxD, places, memory, batch["tokens"])
        clean_BxNxD = said.clean_BxNxD
    valid_BxN = segments_BxN > 0
    error_BxN = jnp.mean(jnp.square(clean_BxNxD - z_0_BxNxD), axis=-1)
    valid_BxL = batch["segments"] > 0
    hit_BxL = said.scores.hit_BxL & valid_BxL
    return (
        jnp.sum(error_BxN * valid_BxN), jnp.sum(valid_BxN), jnp.sum(hit_BxL), jnp.sum(valid_BxL)
    )  # fmt: skip


def evaluate(context: EvalContext) -> Results:
    """Mean squared error of clean latents (variance 1) at each of ``TIMES``, and their mean.

    Self-conditioned models are given their own first estimate. ``accuracy`` is the share of tokens
    that decode rightly from the estimate, ``accuracy_mean`` its mean over the times: unlike the
    error it can be compared between latent spaces.
    """
    results = {}
    for t in TIMES:
        sums = [
            errors_at(
                context.writer.params, context.writer.latents, batch,
                jax.random.fold_in(context.key, i), t,
                models=context.writer.models, diffusion=context.writer.diffusion,
            )
            for i, batch in enumerate(context.batches)
        ]  # fmt: skip
        error, latents, hits, tokens = (float(sum(x)) for x in zip(*sums, strict=True))
        results[f"denoising/error_t_{t:g}"] = error / latents
        results[f"denoising/accuracy_t_{t:g}"] = hits / tokens
    for kind in ("error", "accuracy"):
        values = [results[f"denoising/{kind}_t_{t:g}"] for t in TIMES]
        results[f"denoising/{kind}_mean"] = sum(values) / len(values)
    return results
