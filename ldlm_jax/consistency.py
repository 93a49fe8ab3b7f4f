"""Few steps: what the denoiser says from far out agrees with what it says a step nearer the data.

Shape letters: B rows, N latents, D latent channels, L tokens, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from ldlm_jax.denoiser import Denoiser
from ldlm_jax.diffusion import path
from ldlm_jax.diffusion.objective import masked_mean
from ldlm_jax.diffusion.time import draw_progress
from ldlm_jax.errors import UserError
from ldlm_jax.models.dit import KNOWN, UNKNOWN
from ldlm_jax.models.places import Places


@dataclass(frozen=True)
class ConsistencyConfig:
    """How far apart the two times of a phase with ``consistency`` lie.

    Attributes:
      steps: as far as one of so many steps of a sampler.
    """

    steps: int = 20

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"consistency.steps = {self.steps}: at least 1.")


def consistency_loss(
    denoiser: Denoiser,
    average: Denoiser,
    config: ConsistencyConfig,
    key: jax.Array,
    z_0_BxNxD: jax.Array,
    known_BxN: jax.Array,
    places: Places,
) -> jax.Array:
    """Distance of the denoiser's estimate at time t from the averaged model's at s < t.

    The averaged model takes an Euler step from t to s, and says what it sees there (consistency
    distillation: Song et al. 2023, "Consistency Models", algorithm 2; it is its own teacher, as the
    average follows the model). In tokens, whose posterior both models tell: the cross-entropy of
    one posterior under the other, weighted by ``diffusion.token_loss``.

    Args:
      denoiser: which learns.
      average: with averaged parameters, which are constants here.
      config: how far apart t and s are.
      key: random key.
      z_0_BxNxD: clean latents, without gradient.
      known_BxN: true where the text is given.
      places: of the latents.
    """
    time_key, noise_key = jax.random.split(key)
    B, N, D = z_0_BxNxD.shape
    law, diffusion = denoiser.config.law(D), denoiser.config
    progress_BxN = draw_progress(time_key, B, N, diffusion.block_size, diffusion.own_times)
    t_BxN, s_BxN = (
        jnp.where(known_BxN, 0.0, law.quantile(jnp.maximum(u_BxN, 0.0)))
        for u_BxN in (progress_BxN, progress_BxN - 1 / config.steps)
    )
    z_t_BxNxD = path.interpolate(z_0_BxNxD, jax.random.normal(noise_key, (B, N, D)), t_BxN)
    state_BxN = jnp.where(known_BxN, KNOWN, UNKNOWN)
    blank_BxNxD, clean_BxN = jnp.zeros_like(z_0_BxNxD), jnp.full((B, N), KNOWN)

    def memory_of(model: Denoiser):
        return model.remember(z_0_BxNxD, clean_BxN, places) if diffusion.block_size else None

    memory = memory_of(average)
    there = average(z_t_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory)
    z_s_BxNxD = path.move(z_t_BxNxD, there.clean_BxNxD, t_BxN[..., None], s_BxN[..., None])
    target = average(z_s_BxNxD, s_BxN, state_BxN, blank_BxNxD, places, memory)
    target = jax.lax.stop_gradient(target)
    said = denoiser(z_t_BxNxD, t_BxN, state_BxN, blank_BxNxD, places, memory_of(denoiser))
    to_write_BxN = (places.segments_BxN > 0) & ~known_BxN
    error_BxN = diffusion.objective.loss(said.clean_BxNxD, target.clean_BxNxD, t_BxN)
    loss = masked_mean(error_BxN, to_write_BxN)
    if diffusion.token_loss == 0 or said.logits_BxLxV is None:
        return loss
    posterior_BxLxV = jax.nn.softmax(target.logits_BxLxV)
    entropy_BxL = optax.softmax_cross_entropy(said.logits_BxLxV, posterior_BxLxV)
    to_read_BxL = jnp.repeat(to_write_BxN, denoiser.models.vae.tokens_per_latent, axis=1)
    return loss + diffusion.token_loss * masked_mean(entropy_BxL, to_read_BxL)
