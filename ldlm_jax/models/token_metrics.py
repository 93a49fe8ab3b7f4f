"""How well tokens are predicted, a part of the positions at a time.

Shape letters: B rows, L tokens, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class TokenMetrics(NamedTuple):
    """Cross-entropy of tokens, and whether each is the likeliest."""

    loss_BxL: jax.Array
    correct_BxL: jax.Array

    @classmethod
    def of(cls, logits_BxLxV: jax.Array, tokens_BxL: jax.Array) -> "TokenMetrics":
        """Those of tokens under these logits."""
        loss_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, tokens_BxL)
        of_token_BxL = jnp.take_along_axis(logits_BxLxV, tokens_BxL[..., None], axis=-1)[..., 0]
        # The largest logit is known from the loss; where it stands would take another pass.
        return cls(loss_BxL, of_token_BxL >= jnp.max(logits_BxLxV, axis=-1))


def in_chunks(function, count: int, arrays):
    """``function(arrays)`` position by position, with only a part of the positions at a time.

    For functions with something large inside, such as logits: it exists for one part at a time, and
    is computed again in the backward pass.

    Args:
      function: maps a tree of arrays (B, L / count, ...) to another.
      count: parts into which the positions are dealt in turn, so that a split row stays split.
      arrays: tree of (B, L, ...).
    """
    if count == 1:
        return function(arrays)
    dealt = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, count, *x.shape[2:]), 2, 0), arrays
    )
    done = jax.lax.map(jax.checkpoint(function), dealt)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:]), done)
