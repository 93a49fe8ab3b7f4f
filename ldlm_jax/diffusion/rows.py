"""Rows of a batch that do not depend on one another: keys, noise and choice, row by row."""

import jax
import jax.numpy as jnp


def row_keys(keys: jax.Array, index) -> jax.Array:
    """Fresh keys (B,) from those of B rows; one index for all, or one for each."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(index, len(keys)))


def row_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal (B, *shape), each row by its own key: whatever stands beside it."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def row_choice(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """Numbers (B, N) drawn by logits (B, N, V), each row by its own key.

    By one uniform number a position and a running sum: a number for every token of the vocabulary
    would cost more than the network.
    """
    cumulative_BxNxV = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    shape = logits.shape[1:2]
    uniform_BxN = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
    threshold_BxNx1 = uniform_BxN[..., None] * cumulative_BxNxV[..., -1:]
    return jnp.sum(cumulative_BxNxV <= threshold_BxNx1, axis=-1)


def where_rows(rows_B: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Of an array the rows of ``a`` where true, else of ``b``."""
    return jnp.where(rows_B.reshape(-1, *[1] * (a.ndim - 1)), a, b)
