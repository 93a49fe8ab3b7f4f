"""Which times are trained, and at which a sampler stands: quantiles of one distribution.

A logit-normal distribution, t = sigmoid(location + scale * n) with n ~ N(0, 1) (Esser et al. 2024,
section 3.1). Wider latents need more of their training at high noise; a published fit
(Cola-DLM, arXiv 2605.06548, figure of RQ1) is location = 1 + 0.5 ln(D / 16) for D channels.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class LogitNormal:
    """A distribution of times on (0, 1).

    Attributes:
      location: median of logit(t); 0 is symmetric, larger is noisier.
      scale: standard deviation of logit(t).
    """

    location: float
    scale: float

    @classmethod
    def for_channels(cls, channels: int, scale: float = 1.0) -> "LogitNormal":
        """The published fit for latents of that many channels."""
        return cls(1.0 + 0.5 * math.log(channels / 16), scale)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Inverse of the cumulative distribution, for u in [0, 1]."""
        return jax.nn.sigmoid(self.location + self.scale * jax.scipy.special.ndtri(u))


def stratified(key: jax.Array, count: int) -> jax.Array:
    """Uniform draws (count,), one from each of ``count`` equal slices of [0, 1], shuffled.

    Their quantiles have the right distribution and less variance (Kingma et al. 2021, appendix
    I.1).
    """
    offset_key, order_key = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(offset_key, (count,))) / count
    return jax.random.permutation(order_key, u)


def draw_quantiles(
    key: jax.Array, shape: tuple[int, int], block_size: int, per_token: float, single_B=None
) -> jax.Array:
    """Stratified draws (B, N), one for each block (or text) or for each position.

    Args:
      key: random key.
      shape: (B, N).
      block_size: positions of a block; 0 draws one for the whole row.
      per_token: share of rows in which every position draws for itself.
      single_B: true for further rows in which it does; None for no row.
    """
    rows, positions = shape
    block_key, own_key, choice_key = jax.random.split(key, 3)
    block = block_size or positions
    together = stratified(block_key, rows * positions // block).reshape(rows, -1)
    together = jnp.repeat(together, block, axis=1)
    if per_token == 0 and single_B is None:
        return together
    apart = stratified(own_key, rows * positions).reshape(shape)
    chosen = jax.random.bernoulli(choice_key, per_token, (rows, 1))
    if single_B is not None:
        chosen |= single_B[:, None]
    return jnp.where(chosen, apart, together)


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
