"""What the denoiser predicts, and how its errors count."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Objective:
    """Prediction target and space of the loss.

    Attributes:
      schedule: the noise schedule.
      prediction: ``"x"`` (clean latents) or ``"v"`` (velocity); what the network outputs.
      loss_space: ``"x"``: squared error of the clean latents; ``"v"``: of the velocities.
    """

    schedule: Schedule
    prediction: str = "x"
    loss_space: str = "x"

    # In v space an x-prediction's error is divided by about t^2; nearer to data than this it would
    # drown every other time (ELF, arXiv 2605.10938, clamps at the same place).
    MIN_TIME = 0.05

    def clean(self, output_BxNxD, z_t_BxNxD, t_BxN) -> jax.Array:
        """Clean latents (B, N, D) from the network's output."""
        if self.prediction == "x":
            return output_BxNxD
        return self.schedule.clean_from_velocity(z_t_BxNxD, output_BxNxD, t_BxN)

    def loss(self, clean_BxNxD, z_0_BxNxD, t_BxN) -> jax.Array:
        """Squared error (B, N) of estimated clean latents, averaged over channels."""
        error_BxN = jnp.mean(jnp.square(clean_BxNxD - z_0_BxNxD), axis=-1)
        if self.loss_space == "x":
            return error_BxN
        floor = self.MIN_TIME if self.prediction == "x" else 1e-4
        return error_BxN * jnp.square(self.schedule.velocity_error(jnp.maximum(t_BxN, floor)))


def masked_mean(value: jax.Array, where: jax.Array) -> jax.Array:
    """Mean over the true places; 0 where there is none."""
    where = where.astype(jnp.float32)
    return jnp.sum(value * where) / jnp.maximum(jnp.sum(where), 1.0)
