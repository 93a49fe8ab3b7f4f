"""How well tokens survive the latent space, clean and under noise of growing strength."""

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.config import DiffusionConfig
from ldlm_jax.evals.base import EvalContext, Results
from ldlm_jax.models.denoiser import Denoiser, latent_layout
from ldlm_jax.models.lowering import jit
from ldlm_jax.models.networks import Networks

# Standard deviations of the noise, in units of the latents' own.
NOISE_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@jit(static_argnames=("networks", "diffusion"))
def _correct(params, latents, batch, key, sigma, *, networks: Networks, diffusion: DiffusionConfig):
    layout = latent_layout(batch["segments"], networks, diffusion)
    nowhere_BxN = jnp.zeros(layout.segment_ids_BxN.shape, bool)
    denoiser = Denoiser.create(networks, params, diffusion, latents)
    z_BxNxD = denoiser.encode(batch["tokens"], layout, nowhere_BxN)
    z_BxNxD += sigma * jax.random.normal(key, z_BxNxD.shape)
    logits_BxLxV = denoiser.decode(z_BxNxD, jnp.full(nowhere_BxN.shape, sigma), layout)
    valid_BxL = batch["segments"] > 0
    correct_BxL = (jnp.argmax(logits_BxLxV, axis=-1) == batch["tokens"]) & valid_BxL
    return [(jnp.sum(correct_BxL), jnp.sum(valid_BxL))]


def evaluate(context: EvalContext) -> Results:
    """Share of tokens decoded rightly at each of ``NOISE_LEVELS`` (0: from posterior means)."""
    return {
        f"reconstruction/accuracy_noise_{sigma:g}": context.mean_over_batches(_correct, sigma)[0]
        for sigma in NOISE_LEVELS
    }
