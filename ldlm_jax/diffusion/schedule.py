"""The straight path between data and noise.

t = 0 is data, t = 1 is noise:

    (1)  z_t = (1 - t) z_0 + t eps,      eps ~ N(0, I)
    (2)  v   = dz_t/dt = eps - z_0
    (3)  z_0 = z_t - t v
    (4)  v   = (z_t - z_0) / t
    (5)  E*[z_0 | z_t] = (1 - t) z_t / ((1 - t)^2 + t^2)

(5) is the best linear estimate where each channel of the data has variance 1.
(Lipman et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023, "Flow Straight and
Fast".) Times have the shape of the latents without the channel dimension, or broadcast to it.
"""

import jax
import jax.numpy as jnp


def interpolate(z_0_BxNxD: jax.Array, noise_BxNxD: jax.Array, t_BxN: jax.Array) -> jax.Array:
    """Noisy latents at time t, equation (1)."""
    t = t_BxN[..., None]
    return (1 - t) * z_0_BxNxD + t * noise_BxNxD


def clean_from_velocity(z_t_BxNxD: jax.Array, v_BxNxD: jax.Array, t_BxN: jax.Array) -> jax.Array:
    """Clean latents that a velocity implies, equation (3)."""
    return z_t_BxNxD - t_BxN[..., None] * v_BxNxD


def linear_estimate(z_t_BxNxD: jax.Array, t_BxN: jax.Array) -> jax.Array:
    """What noisy latents tell of clean ones, without knowing their law; equation (5)."""
    t = t_BxN[..., None]
    return (1 - t) / ((1 - t) ** 2 + t**2) * z_t_BxNxD


def move(z_t: jax.Array, z_0: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """Follow the straight line through ``z_t`` and the estimate ``z_0`` from time t to s.

    One Euler step of the probability-flow ODE: equation (4) put into z_s = z_t + (s - t) v.
    Exact at s = 0, where it returns ``z_0``; where s = t nothing moves, t = 0 included.
    """
    return z_0 + jnp.where(s == t, 1.0, s / jnp.where(t > 0, t, 1.0)) * (z_t - z_0)
