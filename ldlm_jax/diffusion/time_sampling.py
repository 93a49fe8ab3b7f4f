"""Which times are trained: quantiles of a logit-normal distribution.

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
