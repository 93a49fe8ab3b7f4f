"""Profiles of the steps worth a look, to be read with xprof."""

import contextlib
import signal
import statistics
import threading
import time
from collections import deque
from pathlib import Path

import jax


class Profiler:
    """Captures profiles: at a step, on SIGUSR1, on a slow step."""

    # Steps whose times tell what is usual.
    RECENT = 50
    FEWEST = 10

    def __init__(self, folder: Path, config):
        """Watch; ``config`` has ``profile_step``, ``profile_steps`` and ``profile_slow``."""
        self._folder, self._config = folder, config
        self._asked = threading.Event()
        self._until: int | None = None
        self._slow_seen = False
        self._times: deque[float] = deque(maxlen=self.RECENT)
        self._began = 0.0
        self._old = None
        with contextlib.suppress(ValueError):  # not the main thread: no signals
            self._old = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())

    def before(self, step: int) -> None:
        """Start a capture if this step is to be seen."""
        if step == self._config.profile_step:
            self._asked.set()
        if self._asked.is_set() and self._until is None:
            self._asked.clear()
            jax.profiler.start_trace(self._folder)
            self._until = step + self._config.profile_steps
        self._began = time.perf_counter()

    def after(self, step: int, metrics) -> None:
        """End a capture that is complete, and look whether this step was slow."""
        if self._until is not None and step + 1 >= self._until:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._until = None
        if self._config.profile_slow > 0 and not self._slow_seen:
            jax.block_until_ready(metrics)
            taken = time.perf_counter() - self._began
            usual = statistics.median(self._times) if len(self._times) >= self.FEWEST else None
            if usual is not None and taken > self._config.profile_slow * usual:
                self._slow_seen = True
                self._asked.set()
            self._times.append(taken)

    def close(self) -> None:
        """End a capture under way."""
        if self._until is not None:
            jax.profiler.stop_trace()
        if self._old is not None:
            signal.signal(signal.SIGUSR1, self._old)
