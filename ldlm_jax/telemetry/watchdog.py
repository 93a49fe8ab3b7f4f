"""Ends a run that hangs, so that whoever supervises it can start it again."""

import faulthandler
import os
import sys
import threading
import time

# What the process then exits with: "try again later" of sysexits.h.
STALLED = 75


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
                    f"{STALLED}.",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STALLED)
