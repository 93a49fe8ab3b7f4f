"""Ends a run that hangs, and starts one again that ended badly."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time

from ldlm_jax.errors import TRY_AGAIN


class Watchdog:
    """A thread that waits for signs of life; without one for too long it ends the process.

    It first prints the stack of every thread. An input that never comes, or a host that waits for
    another for ever, shows there.
    """

    def __init__(self, seconds: float):
        """Begin to wait; 0 seconds waits for nothing."""
        self._seconds, self._last = seconds, time.monotonic()
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        """A sign of life."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Wait no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10)):
            waited = time.monotonic() - self._last
            if waited > self._seconds:
                print(
                    f"error: no step, evaluation or checkpoint was finished for {waited:.0f} s "
                    "(train.stall_timeout): all threads' stacks follow; exit code "
                    f"{TRY_AGAIN}.",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                faulthandler.dump_traceback(all_threads=True)
                os._exit(TRY_AGAIN)


# Exit codes after which starting again would change nothing: done, a user's error, an interruption.
_FINAL = (0, 2, 130)


def supervise(arguments: list[str], restarts: int) -> int:
    """Run ``ldlm`` in a process of its own, and again when it ends badly; its last exit code."""
    command = [sys.executable, "-m", "ldlm_jax.cli", *arguments, "--max-restarts=0"]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for left in range(restarts, -1, -1):
            with subprocess.Popen(command) as child:
                # A terminal's Ctrl-C reaches the child as well, which then saves; a notice does
                # not.
                signal.signal(signal.SIGINT, lambda *_: None)
                signal.signal(signal.SIGTERM, lambda *_, child=child: child.terminate())
                code = child.wait()
            if code in _FINAL or not left:
                break
            print(f"training ended with exit code {code}: starting again, {left} more at most",
                  file=sys.stderr, flush=True)  # fmt: skip
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # a signal, as shells count
