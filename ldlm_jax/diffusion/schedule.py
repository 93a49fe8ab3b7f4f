"""Noise schedules: how much data and how much noise at each time, and all that follows from them.

t = 0 is data, t = 1 is noise. A prime is a derivative by t:

    (1)  z_t = alpha_t z_0 + sigma_t eps,      eps ~ N(0, I)
    (2)  v   = dz_t/dt = alpha'_t z_0 + sigma'_t eps
    (3)  z_0 = (sigma'_t z_t - sigma_t v) / w_t,      w_t = alpha_t sigma'_t - alpha'_t sigma_t
    (4)  E*[z_0 | z_t] = alpha_t z_t / (alpha_t^2 + sigma_t^2)
    (5)  z_s = alpha_s z_0 + (sigma_s / sigma_t) (z_t - alpha_t z_0)
    (6)  z_s = a z_r + sqrt(sigma_s^2 - a^2 sigma_r^2) eps,      a = alpha_s / alpha_r,   r < s

(4) is the best linear estimate where each channel of the data has variance 1. (5) is one step of
DDIM (Song et al. 2021, arXiv 2010.02502, equation 12, without noise); on the straight path it is
Euler's. (6) is the forward process from time r to s.

Times have the shape of the latents without the channel dimension, or broadcast to it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


def _derivative(function, t: jax.Array) -> jax.Array:
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


@dataclass(frozen=True)
class Schedule:
    """A noise schedule; a new one has ``alpha``, ``sigma`` and ``time_at``, and joins SCHEDULES."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """How much of the data is left: 1 at t = 0, 0 at t = 1."""
        raise NotImplementedError

    def sigma(self, t: jax.Array) -> jax.Array:
        """Standard deviation of the noise: 0 at t = 0, 1 at t = 1."""
        raise NotImplementedError

    def time_at(self, ratio: jax.Array) -> jax.Array:
        """The time at which sigma / alpha is ``ratio``."""
        raise NotImplementedError

    def interpolate(self, z_0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """Noisy latents at time t, equation (1)."""
        t = t[..., None]
        return self.alpha(t) * z_0 + self.sigma(t) * noise

    def clean_from_velocity(self, z_t: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
        """The clean latents that a velocity implies, equation (3)."""
        t = t[..., None]
        return (_derivative(self.sigma, t) * z_t - self.sigma(t) * v) / self._w(t)

    def velocity_error(self, t: jax.Array) -> jax.Array:
        """Error of the velocity for an error of 1 of the clean latents, by equation (3)."""
        return self._w(t) / self.sigma(t)

    def _w(self, t: jax.Array) -> jax.Array:
        growth, decay = _derivative(self.sigma, t), _derivative(self.alpha, t)
        return self.alpha(t) * growth - decay * self.sigma(t)

    def linear_estimate(self, z_t: jax.Array, t: jax.Array) -> jax.Array:
        """What noisy latents tell of clean ones without knowing their distribution, (4)."""
        t = t[..., None]
        return self.alpha(t) / (self.alpha(t) ** 2 + self.sigma(t) ** 2) * z_t

    def step(self, z_t: jax.Array, z_0: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        """From time t to s along an estimate of the clean latents, equation (5).

        At s = 0 it returns ``z_0``; where s = t nothing moves, t = 0 included.
        """
        t, s = t[..., None], s[..., None]
        sigma_t = self.sigma(t)
        ratio = jnp.where(s == t, 1.0, self.sigma(s) / jnp.where(sigma_t > 0, sigma_t, 1.0))
        return ratio * z_t + (self.alpha(s) - ratio * self.alpha(t)) * z_0

    def add_noise(self, z_r: jax.Array, noise: jax.Array, r: jax.Array, s: jax.Array) -> jax.Array:
        """From time r forward to s >= r with fresh noise, equation (6)."""
        r, s = r[..., None], s[..., None]
        a = jnp.where(s == r, 1.0, self.alpha(s) / jnp.maximum(self.alpha(r), 1e-6))
        variance = self.sigma(s) ** 2 - (a * self.sigma(r)) ** 2
        return a * z_r + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise


class RectifiedFlow(Schedule):
    """The straight path (Lipman et al. 2023, "Flow Matching"; Liu et al., arXiv 2209.03003)."""

    def alpha(self, t: jax.Array) -> jax.Array:  # noqa: D102
        return 1 - t

    def sigma(self, t: jax.Array) -> jax.Array:  # noqa: D102
        return t

    def time_at(self, ratio: jax.Array) -> jax.Array:  # noqa: D102
        return ratio / (1 + ratio)


class Cosine(Schedule):
    """Variance preserving, a quarter of a circle (Nichol & Dhariwal 2021, without their offset)."""

    def alpha(self, t: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.cos(0.5 * jnp.pi * t)

    def sigma(self, t: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.sin(0.5 * jnp.pi * t)

    def time_at(self, ratio: jax.Array) -> jax.Array:  # noqa: D102
        return 2 / jnp.pi * jnp.arctan(ratio)


SCHEDULES = {"rectified_flow": RectifiedFlow(), "cosine": Cosine()}
