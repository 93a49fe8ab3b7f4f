"""What the allocator is told, seen from a process of its own."""

import os
import subprocess
import sys

PROGRAM = """
import ctypes, resource, sys, threading
from ldlm_jax.allocator import keep_freed_memory
assert keep_freed_memory() if sys.argv[1] == "told" else True

c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
SIZE = 100 * 2**20

def step():
    block = c.malloc(SIZE)
    c.memset(block, 1, SIZE)
    c.free(block)

def steps():
    global faults
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

thread = threading.Thread(target=steps)  # as JAX computes in
thread.start()
thread.join()
print(faults)
"""


def faults(how: str) -> int:
    """Pages asked of the system by ten steps of 100 megabytes, after a first one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


def test_a_step_asks_the_system_for_no_page_that_the_last_one_had():
    # Pages may be of 4 KiB or of 2 MiB.
    assert faults("told") < 10 <= faults("plain")
