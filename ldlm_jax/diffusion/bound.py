"""The diffusion part of a bound on the likelihood of a text (Kingma et al. 2021, "VDM", eq. 15).

    KL(q(z_t | z_0) || p(z_t)) <= 1/2 int_0^S E |z_0 - z_0^(z_s)|^2 ds,    S = (alpha_t / sigma_t)^2

where s is the ratio of signal to noise, and ``z_0^`` the denoiser's estimate at that ratio. Nothing
is left of the data at t = 1, so that no further term arises there.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ldlm_jax.diffusion.rows import row_keys, row_noise
from ldlm_jax.diffusion.schedule import Schedule

# Ratios of signal to noise are drawn evenly in log(s + this): every magnitude gets its share.
_SMALL = 0.01


def diffusion_nats(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    z_0: jax.Array,
    schedule: Schedule,
    ratios: Sequence[float],
    keys: jax.Array,
    times: int,
) -> jax.Array:
    """Unbiased estimates (R, B, N) of the bound, in nats for each latent.

    Args:
      denoise: from noisy latents (B, N, D) and times (B, N) to estimates of the clean ones.
      z_0: clean latents (B, N, D).
      schedule: of the noise.
      ratios: R values of sigma / alpha at the least noisy time, where the decoder takes over.
      keys: random keys (B,).
      times: evaluations; they stand evenly, all moved by one draw.
    """
    largest_R = jnp.asarray(ratios) ** -2
    span = jnp.log1p(jnp.max(largest_R) / _SMALL)
    offset_B = jax.vmap(jax.random.uniform)(row_keys(keys, 0))

    def at(index):
        u_B = (index + offset_B) / times
        s_B = jnp.maximum(_SMALL * jnp.expm1(span * u_B), 1e-9)
        t_B = schedule.time_at(s_B**-0.5)
        t_BxN = jnp.broadcast_to(t_B[:, None], z_0.shape[:2])
        noise = row_noise(row_keys(keys, index + 1), z_0.shape[1:])
        clean = denoise(schedule.interpolate(z_0, noise, t_BxN), t_BxN)
        error_BxN = jnp.sum(jnp.square(clean - z_0), axis=-1)
        nats_BxN = 0.5 * (span * (_SMALL + s_B))[:, None] * error_BxN
        return jnp.where(s_B[:, None] < largest_R[:, None, None], nats_BxN, 0.0)

    return jnp.mean(jax.lax.map(at, jnp.arange(times)), axis=0)
