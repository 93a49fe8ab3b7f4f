"""How well tokens survive the latent space, clean and under noise of growing strength."""

from functools import partial

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, places_of
from ldlm_jax.train_state import Models

# Standard deviations of the noise, in units of the latents' own.
NOISE_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@partial(jax.jit, static_argnames=("models", "diffusion"))
def _hits(params, latents, batch, key, sigma, *, models: Models, diffusion: DiffusionConfig):
    places = places_of(batch["segments"], models, diffusion)
    nothing_BxN = jnp.zeros(places.segments_BxN.shape, bool)
    denoiser = Denoiser.create(models, params, diffusion, latents)
    z_BxNxD = denoiser.encode(batch["tokens"], places, nothing_BxN)
    z_BxNxD += sigma * jax.random.normal(key, z_BxNxD.shape)
    sigma_BxN = jnp.full(nothing_BxN.shape, sigma)
    logits = denoiser.token_logits(z_BxNxD, sigma_BxN, places)
    valid = batch["segments"] > 0
    hit = jnp.argmax(logits, axis=-1) == batch["tokens"]
    return jnp.sum(hit & valid), jnp.sum(valid)


def evaluate(context: EvalContext) -> Results:
    """Share of tokens decoded rightly at each of ``NOISE_LEVELS`` (0: from posterior means)."""
    results = {}
    for sigma in NOISE_LEVELS:
        counts = [
            _hits(
                context.writer.params, context.writer.latents, batch,
                jax.random.fold_in(context.key, i), sigma,
                models=context.writer.models, diffusion=context.writer.diffusion,
            )
            for i, batch in enumerate(context.batches)
        ]  # fmt: skip
        hits, total = map(sum, zip(*counts, strict=True))
        results[f"reconstruction/accuracy_noise_{sigma:g}"] = float(hits) / float(total)
    return results
