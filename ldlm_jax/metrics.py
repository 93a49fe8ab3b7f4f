"""Where a run's numbers go: a JSONL file always, TensorBoard beside it, and the screen."""

import json
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl`` and TensorBoard events to ``tensorboard/``."""

    def __init__(self, folder: Path):
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict) -> None:
        """Numbers become scalars, strings texts."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(name, value.replace("\n", "  \n"), step)
            else:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        # TensorBoard's writer thread dies on a full disk, and closing would then wait for ever.
        closing = threading.Thread(target=self._board.close, daemon=True)
        closing.start()
        closing.join(timeout=10)
        self._file.close()


class Screen:
    """A progress bar on a terminal, plain lines everywhere else."""

    def __init__(self, total: int, start: int):
        self._console = Console(soft_wrap=True, highlight=False)
        self._total = total
        self._bar = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=total, completed=start, note="")
            self._bar.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def metrics(self, step: int, note: str) -> None:
        """Show the latest numbers."""
        if self._bar:
            self._bar.update(self._task, note=note)
        else:
            self.line(f"step {step}/{self._total}  {note}")

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar:
            self._bar.stop()


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
