"""What a terminal shows of a training, and of anything else that takes its time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class TrainingBar(Progress):
    """A bar with the time that is left, below the latest numbers.

    The numbers have lines of their own: beside the bar they would leave no room for the time.
    """

    def __init__(self, console: Console):
        self.note = ""
        super().__init__(
            TextColumn("step {task.completed}/{task.total}"), BarColumn(),
            TimeRemainingColumn(), TextColumn("left"), console=console,
        )  # fmt: skip

    def get_renderables(self):
        """The numbers, and the bar."""
        if self.note:
            yield Text(self.note)
        yield from super().get_renderables()


class Screen:
    """A progress bar on a terminal, plain lines everywhere else."""

    def __init__(
        self, total: int, start: int, silent: bool = False, console: Console | None = None
    ):
        self._console = console or Console(highlight=False, quiet=silent)
        self._total = total
        self._bar = None
        if self._console.is_terminal and not silent and start < total:
            self._bar = TrainingBar(self._console)
            self._task = self._bar.add_task("train", total=total, completed=start)
            self._bar.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def metrics(self, step: int, note: str) -> None:
        """Show the latest numbers."""
        if self._bar:
            self._bar.note = note
        else:
            self.line(f"step {step}/{self._total}  {note}")

    def evaluation(self, step: int, results: dict) -> None:
        """Print the results of an evaluation, numbers first; nothing where there are none."""
        if not results:
            return
        shown = ["bound/nats", "reconstruction/accuracy_noise_0", "reconstruction/accuracy_noise_1",
                 "denoising/error_mean", "denoising/accuracy_mean"]  # fmt: skip
        shown += [n for n in results if n.startswith(("puzzles/solved", "puzzles/evaluations"))]
        numbers = "  ".join(f"{name} {results[name]:.3f}" for name in shown if name in results)
        self.line(f"evaluation at step {step}: {numbers}")
        for name, text in results.items():
            if isinstance(text, str):
                self.line(f"{name}:\n{text}")

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar:
            self._bar.stop()


@contextmanager
def told_apart() -> Iterator[Callable[[str], None]]:
    """A context with a function that names what begins now; on stderr.

    A terminal shows how long each part has taken so far, all else a line for each.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda name: console.print(f"{name} ...", markup=False, soft_wrap=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:

        def end() -> None:
            for task in bar.task_ids[-1:]:
                bar.update(task, total=1, completed=1)

        def begin(name: str) -> None:
            end()
            bar.add_task(name, total=None)

        yield begin
        end()
