"""At which quantiles of the training times a sampler stands."""

import jax
import jax.numpy as jnp


def quantile_grid(steps: int | jax.Array, most: int | None = None) -> jax.Array:
    """Quantiles from 1 (noise) to 0 (data) at which a sampler stands.

    Args:
      steps: number of equal steps of each row, any shape; at least 1.
      most: the largest of them, to be named where there are several; rows with fewer steps then
        stay at 0.

    Returns:
      (most + 1, *steps.shape).

    Raises:
      ValueError: most < 1.
    """
    most = steps if most is None else most
    if most < 1:
        raise ValueError(f"steps = {most}: a sampler takes at least 1 step.")
    steps = jnp.asarray(steps, jnp.float32)
    done = jnp.arange(most + 1).reshape(-1, *[1] * steps.ndim)
    return jnp.maximum(1.0 - done / steps, 0.0)


def rolling(u: jax.Array, positions: int, offset: float | jax.Array) -> jax.Array:
    """Quantiles of each of some positions, of which the first runs ahead of the last.

        u_i = clip((1 + offset) u - offset (1 - i / (positions - 1)), 0, 1)

    With offset 0 all run together; each position takes 1 / (1 + offset) of the steps (cf. Ruhe et
    al. 2024, "Rolling Diffusion Models").

    Args:
      u: quantile (steps, ...) of the whole, 1 (noise) to 0 (data).
      positions: how many.
      offset: at least 0; one number or as the further dimensions of ``u``.

    Returns:
      (steps, ..., positions).
    """
    place = jnp.arange(positions) / max(1, positions - 1)
    offset = jnp.asarray(offset)[..., None]
    return jnp.clip((1 + offset) * u[..., None] - offset * (1 - place), 0.0, 1.0)
