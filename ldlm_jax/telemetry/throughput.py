"""Where a run's time goes: speed, utilisation, and profiles of the steps worth a look."""

import contextlib
import signal
import statistics
import threading
import time
from collections import deque
from pathlib import Path

import jax

from ldlm_jax.plan.flops import Counter
from ldlm_jax.plan.hardware import chip_of


class Stopwatch:
    """Time by kind of work, so that the share outside the train step can be told."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, kind: str) -> None:
        """Book the time since the last lap on a kind of work."""
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._since
        self._since = now

    def drain(self) -> dict[str, float]:
        """Seconds by kind since the last drain."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Account:
    """Speed and utilisation of training between two reports."""

    def __init__(self, experiment, recipe, start: int):
        """Account for the steps from ``start`` on."""
        self._rows, self._window = experiment.train.batch_size, experiment.data.window
        self._counter = Counter(recipe, self._rows, self._window)
        self._watch, self._reported = Stopwatch(), start
        self._chip = chip_of(jax.devices()[0].device_kind)
        self._total: dict[str, float] = {}

    def lap(self, kind: str) -> None:
        """Book the time since the last lap on ``input``, ``step``, ``evaluation``..."""
        self._watch.lap(kind)

    def report(self, step: int, phase) -> dict[str, float]:
        """What was done since the last report, which ended at an earlier step.

        Returns:
          ``tokens_per_second`` and ``flops_per_second`` of a device, of training proper (input and
          step); ``mfu`` where the device's peak is known; ``input_share``; ``seconds/<kind>``; and
          ``goodput``, the share of all time so far that went into steps.
        """
        seconds, steps = self._watch.drain(), step - self._reported
        self._reported = step
        for kind, value in seconds.items():
            self._total[kind] = self._total.get(kind, 0.0) + value
        training = seconds.get("input", 0.0) + seconds["step"]
        flops = sum(self._counter.step(phase).values()) * steps / jax.device_count()
        results = {
            "tokens_per_second": steps * self._rows * self._window / training,
            "flops_per_second": flops / training,
            "input_share": seconds["input"] / training,
            "goodput": self._total["step"] / sum(self._total.values()),
        }
        if self._chip:
            results["mfu"] = results["flops_per_second"] / self._chip.flops
        return results | {f"seconds/{kind}": value for kind, value in seconds.items()}


class Profiler:
    """Captures profiles, to be read with xprof: at a step, on SIGUSR1, on a slow step."""

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
