"""Where a run's numbers go: a JSONL file always, TensorBoard beside it, others on wish."""

import json
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from ldlm_jax.errors import UserError
from ldlm_jax.telemetry.loggers import Logger
from ldlm_jax.telemetry.screen import Screen

# A run ends after so many steps in a row that changed nothing.
MOST_SKIPPED = 100
# Steps that the host runs ahead of the devices: enough that they always find the next one waiting.
STEPS_AHEAD = 2


def finite(value):
    """The same with null in place of what is no number: JSON has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_after(file: Path, step: int) -> None:
    """Leave out lines of later steps, which are made again, and one that was cut off."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_up_to(line, step)]
    if kept != lines:
        shorter = file.with_suffix(".tmp")
        shorter.write_text("".join(kept), encoding="utf-8")
        shorter.replace(file)


def _is_up_to(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except json.JSONDecodeError:
        return False


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl`` and TensorBoard events to ``tensorboard/``."""

    def __init__(
        self,
        folder: Path,
        silent: bool = False,
        start: int = 0,
        open_others: Callable[[], Sequence[Logger]] = tuple,
    ):
        """Open both for appending after step ``start``.

        Args:
          folder: of the run.
          silent: write nothing.
          start: the last step that stays.
          open_others: opens what takes the same numbers, see ``loggers``.
        """
        self._silent = silent
        if not silent:
            self._others = open_others()
            _cut_after(folder / "metrics.jsonl", start)
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict) -> None:
        """Numbers become scalars, strings texts."""
        if self._silent:
            return
        self._file.write(json.dumps(finite({"step": step, **values}), allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(name, value.replace("\n", "  \n"), step)
            else:
                self._board.add_scalar(name, value, step)
        for other in self._others:
            other.write(step, values)

    def close(self) -> None:
        """Flush and close."""
        if self._silent:
            return
        # TensorBoard's writer thread dies on a full disk, and closing would then wait for ever.
        closing = threading.Thread(target=self._board.close, daemon=True)
        closing.start()
        closing.join(timeout=10)
        self._file.close()
        for other in self._others:
            other.close()


class Log:
    """Writes the metrics of a step once the next one is under way, so that no device waits.

    Reading a metric waits for its step; meanwhile the one after it is dispatched already.
    """

    def __init__(self, writer: MetricsWriter, screen: Screen, throughput):
        self._writer, self._screen, self._throughput = writer, screen, throughput
        self._pending, self._before = None, None
        self._under_way: deque[jax.Array] = deque()
        # Steps up to the last one written that changed nothing.
        self.skipped_in_a_row = 0

    def under_way(self, metrics: dict) -> None:
        """A step was dispatched: write the one before, and wait until only few are under way."""
        self._under_way.append(metrics["loss"])
        if len(self._under_way) > STEPS_AHEAD:
            jax.block_until_ready(self._under_way.popleft())  # nothing is fetched
        self.flush()

    def put(self, done: int, phase, metrics: dict) -> None:
        """Keep a step's metrics to be written."""
        self._pending = done, phase, metrics

    def flush(self) -> None:
        """Write what is kept, if anything.

        Raises:
          UserError: no step has changed anything for long.
        """
        if self._pending is None:
            return
        (done, phase, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._throughput.book("step")
        values |= self._throughput.report(done, phase)
        self._writer.write(done, values)
        self._screen.metrics(done, _summary(values))
        self._throughput.book("log")
        self._count_skipped(done, values)

    def _count_skipped(self, done: int, values: dict) -> None:
        before, self._before = self._before, (done, values["skipped"])
        if before is None:
            return
        steps, skipped = done - before[0], values["skipped"] - before[1]
        self.skipped_in_a_row = self.skipped_in_a_row + steps if skipped == steps else 0
        if self.skipped_in_a_row >= MOST_SKIPPED:
            parts = [k for k in values if "loss/" in k or k == "grad_norm"]
            which = ", ".join(k for k in parts if not math.isfinite(values[k]))
            raise UserError(
                f"the last {self.skipped_in_a_row} steps up to {done} were skipped, as {which} "
                "was not finite; no checkpoint was saved meanwhile. Lower optim.learning_rate or "
                "optim.clip_norm; JAX_DEBUG_NANS=True names the operation."
            )


def _summary(values: dict) -> str:
    losses = [f"{k.removeprefix('loss/')} {v:.3f}" for k, v in values.items() if "loss/" in k]
    skipped = f"  skipped {values['skipped']:.0f}" if values["skipped"] else ""
    busy = f"  MFU {values['mfu']:.1%}" if "mfu" in values else ""
    return (
        f"loss {values['loss']:.3f}  {'  '.join(losses)}  grad {values['grad_norm']:.2f}  "
        f"{values['tokens_per_second']:,.0f} tokens/s{busy}{skipped}"
    )
