"""How far long work is."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import track

# How often a log is told of what takes long.
_SECONDS_A_LINE = 30


def watched(items: Iterable, name: str, unit: str, total: int | None = None) -> Iterator:
    """The same items, counted while they go by: on a terminal all the time, in a log by lines."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, name, total, console=console, transient=True)
        return
    last_line = time.monotonic()
    for count, item in enumerate(items):
        if time.monotonic() - last_line >= _SECONDS_A_LINE:
            of = f" of {total:,}" if total else ""
            print(f"{name}: {count:,}{of} {unit}", file=sys.stderr, flush=True)
            last_line = time.monotonic()
        yield item
