"""What programs are compiled for, and how their arrays are split."""

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, wraps
from typing import Literal

import flax.linen as nn
import jax

# Compute dtype of a network; parameters are fp32.
Dtype = Literal["float32", "bfloat16"]

# For ``jax.jit``: whole products. Cut into small ones that hide what is sent, they would take far
# longer than the sending.
_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}

_TARGET: ContextVar[str | None] = ContextVar("target platform", default=None)


def compiler_options(platform: str | None = None) -> dict[str, str] | None:
    """For ``jax.jit`` on a platform, by default the one that is there."""
    return _OPTIONS.get(platform or jax.default_backend())


def jit(**options) -> Callable[[Callable], Callable]:
    """A decorator: ``jax.jit`` with these options and those of the platform.

    The platform is asked when the function is first called, not when it is defined: asking starts
    the devices. ``function.jitted()`` is what ``jax.jit`` returned.
    """

    def decorate(function):
        @cache
        def jitted():
            return jax.jit(function, compiler_options=compiler_options(), **options)

        @wraps(function)
        def call(*args, **kwargs):
            return jitted()(*args, **kwargs)

        call.jitted = jitted
        return call

    return decorate


@contextlib.contextmanager
def compile_for(platform: str):
    """Trace inside as if for that platform, whatever the devices are (for plans)."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def platform() -> str:
    """What is compiled for: the devices of the mesh in use, present or not, or the default."""
    if _TARGET.get() is not None:
        return _TARGET.get()
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Name the logical axis of each dimension, so that the compiler splits it by ``AxisRules``.

    Without rules in use (one device, tests of a module) nothing happens.
    """
    return nn.with_logical_constraint(x, axes)
