"""Puzzles as requests: what is given, and what the answers look like on a terminal."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated

from ldlm_jax.data.dataset import DataConfig, prepare
from ldlm_jax.data.progress import watched
from ldlm_jax.data.stamped import read_json, write_json
from ldlm_jax.data.texts import read_texts
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.puzzles.base import OPEN, Puzzle, Task
from ldlm_jax.puzzles.registry import TASKS
from ldlm_jax.sampling.config import SampleConfig
from ldlm_jax.sampling.request import Request
from ldlm_jax.sampling.template import Pieces, Span
from ldlm_jax.validate import check_value

# Some take a second to make.
Puzzles = Annotated[int, "[1, 10000]"]
# Of how they are made; those of another version are made anew.
_VERSION = 1


def task_of(source: str) -> Task:
    """The task whose corpus a model was trained on.

    Raises:
      UserError: it was trained on something else.
    """
    if source not in TASKS:
        raise UserError(
            f"data.source = {source!r} holds no puzzles; those that do are {', '.join(TASKS)}."
        )
    return TASKS[source]


def level_of(source: str, level: str) -> str:
    """A level of a corpus's puzzles by name, the first if there is none.

    Raises:
      UserError: the corpus holds no puzzles, or the level is unknown.
    """
    levels = task_of(source).levels
    if level and level not in levels:
        raise UserError(f"no level {level!r} of {source}: {did_you_mean(level, levels)}")
    return level or levels[0]


def pieces_of(puzzle: Puzzle) -> Pieces:
    """What is given, and spans to fill."""
    pieces: list[str | Span] = [
        Span(len(list(symbols))) if is_open else "".join(symbols)
        for is_open, symbols in groupby(puzzle.given, lambda symbol: symbol == OPEN)
    ]
    return tuple([*pieces, Span(open_end=True)] if puzzle.open_end else pieces)


def requests_of(puzzles: list[Puzzle], config: SampleConfig, seed: int) -> list[Request]:
    """A request for each puzzle, with noise of its own."""
    return [
        Request(seed=seed, number=number, config=config, revise=pieces_of(puzzle))
        for number, puzzle in enumerate(puzzles)
    ]


def held_out(config: DataConfig, split: str, level: str, count: int, seed: int) -> list[Puzzle]:
    """Puzzles of a held-out split of a puzzle corpus; made once, and kept beside the corpus.

    Args:
      config: of the corpus.
      split: ``validation`` or ``test``.
      level: one of ``Task.levels``; empty for the first.
      count: how many.
      seed: which.

    Raises:
      UserError: as ``level_of``; or no such number can be had.
    """
    check_value("puzzles", Puzzles, count)
    return _held_out(config, split, level_of(config.source, level), count, seed)


@lru_cache(maxsize=8)
def _held_out(config: DataConfig, split: str, level: str, count: int, seed: int) -> list[Puzzle]:
    folder = prepare(config).text
    texts = list(read_texts(folder, split))
    checksum = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    facts = {"version": _VERSION, "texts": checksum}
    file = folder.parent / "puzzles" / f"{split}-{level.replace(' ', '_')}-{count}-{seed}.json"
    with contextlib.suppress(UserError):  # there are none yet, or they are damaged
        kept = read_json(file, ("facts", "puzzles"))
        if kept["facts"] == facts:
            return [Puzzle(*puzzle) for puzzle in kept["puzzles"]]
    made = TASKS[config.source].puzzles(texts, level, count, seed)
    puzzles = list(watched(made, f"puzzles, {level}", "made", count))
    _keep(file, {"facts": facts, "puzzles": puzzles})
    return puzzles


def _keep(file: Path, values: dict) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written costs time, no more
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        write_json(partial, values)
        partial.rename(file)


def typed(text: str, task: Task | None) -> Puzzle:
    """A puzzle as a user spells it: ``_`` or ``.`` for each symbol to find, blanks for the eye.

    Raises:
      UserError: nothing is to be found, or a grid has not the right number of cells.
    """
    side = task.side if task else 0
    given = "".join(text.split()).replace(".", OPEN) if side else text
    if OPEN not in given:
        raise UserError(f"--puzzle {text!r}: write _ for each symbol that is to be found.")
    if side and len(given) != side**2:
        raise UserError(f"--puzzle has {len(given)} cells; a grid of side {side} has {side**2}.")
    return Puzzle(given)


def printer(task: Task | None) -> Callable[[Puzzle, str], str]:
    """How an answer is shown: a grid as one, its clues beside it; and whether it is right."""

    def show(puzzle: Puzzle, text: str) -> str:
        if task is None:
            return text
        verdict = "solved" if task.solved(puzzle, text) else "wrong"
        side = task.side
        if not side:
            return f"{text}  ({verdict})"
        lines = [verdict]
        for row in range(0, side**2, side):
            clues = puzzle.given[row : row + side].replace(OPEN, ".")
            lines.append(f"    {' '.join(clues)}     {' '.join(text[row : row + side])}")
        return "\n".join(lines)

    return show
