"""Where a run's numbers go: a JSONL file always, TensorBoard beside it, and the screen."""

import json
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends metrics to ``metrics.jsonl`` and TensorBoard events to ``tensorboard/``."""

    def __init__(self, folder: Path, silent: bool = False):
        """Open both for appending; a silent one writes nothing."""
        self._silent = silent
        if not silent:
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict) -> None:
        """Numbers become scalars, strings texts."""
        if self._silent:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, str):
                self._board.add_text(name, value.replace("\n", "  \n"), step)
            else:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._silent:
            return
        # TensorBoard's writer thread dies on a full disk, and closing would then wait for ever.
        closing = threading.Thread(target=self._board.close, daemon=True)
        closing.start()
        closing.join(timeout=10)
        self._file.close()


class Screen:
    """A progress bar on a terminal, plain lines everywhere else."""

    def __init__(self, total: int, start: int, silent: bool = False):
        self._console = Console(soft_wrap=True, highlight=False, quiet=silent)
        self._total = total
        self._bar = None
        if sys.stdout.isatty() and not silent:
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
