"""Guidance: push an estimate away from what the model would say without the condition."""

import jax
import jax.numpy as jnp


def guide(conditional: jax.Array, unconditional: jax.Array, weight) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6) on estimates of clean latents.

    Weight 1 is no guidance, 0 ignores the condition, above 1 exaggerates it. The velocity is linear
    in the clean latents (schedule.py, equation 2), so guiding either is the same. Written so that
    weight 1 gives the conditional estimate to the last bit.
    """
    return conditional + (weight - 1) * (conditional - unconditional)


def guide_by_context(logits: jax.Array, short: jax.Array, weight, ends_V: jax.Array) -> jax.Array:
    """Log-probabilities pushed away from those of a short context.

    What is likely after the last word, whatever came before it, is held against a token (Malkin et
    al. 2022, "Coherence Boosting", section 3). How probable it is that the text ends stays as it
    was, else texts would grow.

    Args:
      logits: (..., V), given all the context.
      short: (..., V), given the neighbours alone.
      weight: 1 is no guidance, and returns ``logits`` to the last bit.
      ends_V: true for tokens that end a text, or stand after its end.
    """
    full = jax.nn.log_softmax(logits)
    guided = guide(full, jax.nn.log_softmax(short), weight)
    goes_on = jax.nn.logsumexp(jnp.where(ends_V, -jnp.inf, full), axis=-1, keepdims=True)
    guided = jax.nn.log_softmax(jnp.where(ends_V, -jnp.inf, guided)) + goes_on
    return jnp.where(weight == 1, logits, jnp.where(ends_V, full, guided))
