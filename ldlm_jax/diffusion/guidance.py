"""Guidance: push an estimate away from what the model would say without the condition."""

import jax


def guide(conditional: jax.Array, unconditional: jax.Array, weight) -> jax.Array:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6) on estimates of clean latents.

    Weight 1 is no guidance, 0 ignores the condition, above 1 exaggerates it. On the straight path
    guiding clean latents and guiding velocities are the same (path.py, equation 4). Written so
    that weight 1 gives the conditional estimate to the last bit.
    """
    return conditional + (weight - 1) * (conditional - unconditional)
