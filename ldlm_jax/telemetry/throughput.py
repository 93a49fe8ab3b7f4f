"""Where a run's time goes: speed, utilisation, and the share outside the train step."""

import time
from collections.abc import Callable

import jax

from ldlm_jax.plan.hardware import chip_of


class Timer:
    """Seconds by kind of work."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def book(self, kind: str) -> None:
        """Book the time since the last booking on a kind of work."""
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._since
        self._since = now

    def reset(self) -> dict[str, float]:
        """Seconds by kind since the last reset."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Throughput:
    """Speed and utilisation of training between two reports."""

    def __init__(self, tokens: int, flops_of: Callable, start: int):
        """Measure the steps from ``start`` on.

        Args:
          tokens: of a batch.
          flops_of: maps a phase to the FLOPs of a step in it.
          start: the first step.
        """
        self._tokens, self._flops_of, self._flops = tokens, flops_of, {}
        self._timer, self._reported = Timer(), start
        self._chip = chip_of(jax.devices()[0].device_kind)
        self._total: dict[str, float] = {}

    def book(self, kind: str) -> None:
        """Book the time since the last booking on ``input``, ``step``, ``evaluation``..."""
        self._timer.book(kind)

    def report(self, step: int, phase) -> dict[str, float]:
        """What was done since the last report, which ended at an earlier step.

        Returns:
          ``tokens_per_second`` and ``flops_per_second`` of a device, of training proper (input and
          step); ``mfu`` where the device's peak is known; ``input_share``; ``seconds/<kind>``; and
          ``goodput``, the share of all time so far that went into steps.
        """
        seconds, steps = self._timer.reset(), step - self._reported
        self._reported = step
        for kind, value in seconds.items():
            self._total[kind] = self._total.get(kind, 0.0) + value
        waited = seconds.get("input", 0.0)
        training = waited + seconds["step"]
        if phase not in self._flops:
            self._flops[phase] = self._flops_of(phase)
            self._timer.book("flops")
        flops = self._flops[phase] * steps / jax.device_count()
        results = {
            "tokens_per_second": steps * self._tokens / training,
            "flops_per_second": flops / training,
            "input_share": waited / training,
            "goodput": self._total["step"] / sum(self._total.values()),
        }
        if self._chip:
            results["mfu"] = results["flops_per_second"] / self._chip.flops
        return results | {f"seconds/{kind}": value for kind, value in seconds.items()}
