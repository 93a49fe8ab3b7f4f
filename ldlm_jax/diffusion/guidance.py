"""Guidance: push an estimate away from what the model would say without the condition."""

import jax
import jax.numpy as jnp


def guide(conditional: jax.Array, unconditional: jax.Array, weight) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6) on estimates of clean latents.

    Weight 1 is no guidance, 0 ignores the condition, above 1 exaggerates it. On the straight path
    guiding clean latents and guiding velocities are the same (path.py, equation 4). Written so
    that weight 1 gives the conditional estimate to the last bit.
    """
    return conditional + (weight - 1) * (conditional - unconditional)


def guide_by_context(logits: jax.Array, near: jax.Array, weight, ends_V: jax.Array) -> jax.Array:
    """Log-probabilities pushed away from what the neighbours alone would let expect.

    What is likely after the last word, whatever came before it, is held against a token (Malkin et
    al. 2022, "Coherence Boosting", section 3, with the neighbours for the short context). How
    probable it is that the text ends stays as it was, else texts would grow.

    Args:
      logits: (..., V), given all the context.
      near: (..., V), given the neighbours.
      weight: 1 is no guidance, and returns ``logits`` to the last bit.
      ends_V: true for tokens that end a text, or stand after its end.
    """
    known = jax.nn.log_softmax(logits)
    guided = guide(known, jax.nn.log_softmax(near), weight)
    goes_on = jax.nn.logsumexp(jnp.where(ends_V, -jnp.inf, known), axis=-1, keepdims=True)
    guided = jax.nn.log_softmax(jnp.where(ends_V, -jnp.inf, guided)) + goes_on
    return jnp.where(weight == 1, logits, jnp.where(ends_V, known, guided))
