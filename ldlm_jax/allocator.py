"""The C library's allocator, on machines where the CPU computes."""

import ctypes
import os
import sys
from importlib.util import find_spec

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_ACCELERATORS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")


def keep_freed_memory() -> bool:
    """Keep what is freed, as each step of a CPU backend wants as much again.

    By default glibc hands large blocks back to the system, which must fill every page with zeros
    when the next step asks for it: hundreds of megabytes a step, and a good part of its time. To be
    called before JAX starts its threads, as those that have an arena of their own keep it. Does
    nothing where there is another allocator, or where an accelerator may compute and the host's
    memory is better shared.

    Returns:
      Whether the allocator was told.
    """
    only_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(find_spec, _ACCELERATORS))
    if sys.platform != "linux" or not only_cpu:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken)
