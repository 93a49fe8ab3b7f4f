"""Scores of queries and keys, and where the arrays of attention live.

Shape letters: B batch, N positions (queries), R positions (keys), H heads, K head width.
"""

import contextlib
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.token_layout import Sight

# A score that a softmax in fp32 takes for nothing, and whose differences are still finite.
UNSEEN = -1e30


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Say which logical axis each dimension is, so that the compiler splits it by ``AxisRules``.

    Without rules in force (one device, tests of a module) nothing happens.
    """
    return nn.with_logical_constraint(x, axes)


# For ``jax.jit``: whole products. Cut into small ones that hide what is sent, they would take far
# longer than the sending.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}

_PLANNED: ContextVar[str | None] = ContextVar("planned platform", default=None)


@contextlib.contextmanager
def planning_for(platform: str):
    """Compile inside as if for that platform, whatever the devices are (for plans)."""
    token = _PLANNED.set(platform)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def platform() -> str:
    """What is compiled for: the devices of the mesh in force, present or not, or the default."""
    if _PLANNED.get() is not None:
        return _PLANNED.get()
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def offset_scores(sight: Sight, offset_bias: jax.Array | None) -> jax.Array | None:
    """What the offset adds to each score, (B, H, N, R); see ``attention.attend``."""
    if offset_bias is None:
        return None
    radius = offset_bias.shape[1] // 2
    index = jnp.clip(sight.offset_BxQxK, -radius, radius) + radius
    return jnp.swapaxes(jnp.take(offset_bias, index, axis=1), 0, 1)


def scores_of(q_BxNxHxK, k_BxRxHxK, sight: Sight, offset_bias) -> jax.Array:
    """(B, H, N, R), fp32, with what is not seen far below everything."""
    scale = q_BxNxHxK.shape[-1] ** -0.5
    scores = scale * jnp.einsum(
        "bnhk,brhk->bhnr", q_BxNxHxK, k_BxRxHxK, preferred_element_type=jnp.float32
    )
    bias = offset_scores(sight, offset_bias)
    if bias is not None:
        scores += bias
    return jnp.where(sight.mask_BxQxK[:, None], scores, UNSEEN)
