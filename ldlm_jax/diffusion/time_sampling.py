"""When to train and where to step: one law of times for both.

A logit-normal law, t = sigmoid(location + scale * n) with n ~ N(0, 1) (Esser et al. 2024,
section 3.1). Wider latents need more of their training at high noise; a published fit
(Cola-DLM, arXiv 2605.06548, figure of RQ1) is location = 1 + 0.5 ln(D / 16) for D channels.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class LogitNormal:
    """A law of times on (0, 1).

    Attributes:
      location: median of logit(t); 0 is symmetric, larger is noisier.
      scale: standard deviation of logit(t).
    """

    location: float
    scale: float

    @classmethod
    def for_channels(cls, channels: int, scale: float = 1.0) -> "LogitNormal":
        """The law of the published fit for latents of that many channels."""
        return cls(1.0 + 0.5 * math.log(channels / 16), scale)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Inverse of the cumulative distribution, for u in [0, 1]."""
        return jax.nn.sigmoid(self.location + self.scale * jax.scipy.special.ndtri(u))


def stratified(key: jax.Array, count: int) -> jax.Array:
    """Uniform draws (count,), one from each of ``count`` equal slices of [0, 1], shuffled.

    Quantiles of such draws have the right law and less variance (Kingma et al. 2021, appendix
    I.1).
    """
    offset_key, order_key = jax.random.split(key)
    u = (jnp.arange(count) + jax.random.uniform(offset_key, (count,))) / count
    return jax.random.permutation(order_key, u)


def draw_progress(
    key: jax.Array, rows: int, positions: int, block_size: int, own_times: float, single_B=None
) -> jax.Array:
    """Stratified draws (rows, positions), one for each block (or text) or for each position.

    Args:
      key: random key.
      rows: how many rows.
      positions: of a row.
      block_size: positions of a block; 0 draws one for the whole row.
      own_times: share of rows in which every position draws for itself.
      single_B: true for further rows in which it does; None for no row.
    """
    block_key, own_key, choice_key = jax.random.split(key, 3)
    block = block_size or positions
    together = stratified(block_key, rows * positions // block).reshape(rows, -1)
    together = jnp.repeat(together, block, axis=1)
    if own_times == 0 and single_B is None:
        return together
    apart = stratified(own_key, rows * positions).reshape(rows, positions)
    chosen = jax.random.bernoulli(choice_key, own_times, (rows, 1))
    if single_B is not None:
        chosen |= single_B[:, None]
    return jnp.where(chosen, apart, together)


def grid(steps: int | jax.Array, most: int | None = None) -> jax.Array:
    """Progress from 1 (noise) to 0 (data) at which a sampler stands.

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


def stagger(u: jax.Array, positions: int, lag: float | jax.Array) -> jax.Array:
    """Progress of each of some positions, of which the first runs ahead of the last.

    (7)  u_i = clip((1 + lag) u - lag (1 - i / (positions - 1)), 0, 1)

    With lag 0 all run together; each position takes 1 / (1 + lag) of the steps (a wave of noise
    that recedes; cf. Ruhe et al. 2024, "Rolling Diffusion Models").

    Args:
      u: progress (steps, ...) of the whole, 1 (noise) to 0 (data).
      positions: how many.
      lag: at least 0; one number or as the further dimensions of ``u``.

    Returns:
      Progress (steps, ..., positions).
    """
    place = jnp.arange(positions) / max(1, positions - 1)
    lag = jnp.asarray(lag)[..., None]
    return jnp.clip((1 + lag) * u[..., None] - lag * (1 - place), 0.0, 1.0)
