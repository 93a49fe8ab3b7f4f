"""What a kind of puzzle offers: documents to train on, puzzles to solve, and a check."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

# Stands in ``Puzzle.given`` for each symbol that is to be found.
OPEN = "_"

# Hands items on and shows how far they are: (items, name, unit, how many).
Watch = Callable[[Iterable, str, str, int], Iterable]


def unwatched(items: Iterable, *_) -> Iterable:
    """A ``Watch`` that shows nothing."""
    return items


class Puzzle(NamedTuple):
    """A puzzle.

    Attributes:
      given: the text, with ``OPEN`` for each symbol to find.
      open_end: whether an answer of open length follows ``given``.
    """

    given: str
    open_end: bool = False

    def kept(self, text: str) -> bool:
        """Whether everything given stands in ``text``, where it stood."""
        right = len(text) > len(self.given) if self.open_end else len(text) == len(self.given)
        return right and all(g in (OPEN, t) for g, t in zip(self.given, text, strict=False))


@dataclass(frozen=True)
class Task:
    """A kind of puzzle.

    Attributes:
      description: one line.
      documents: a ``Watch`` to training, validation and test documents (solved puzzles), always
        the same.
      levels: names of sets of puzzles; the first is the one that is measured within training.
      puzzles: (documents of a split, level, count, seed) to as many puzzles, one after another.
      solved: whether a whole text is a right answer to a puzzle, any of several.
      side: of the square grid as which a text is shown; 0 for none.
      box: rows and columns of a box of that grid.
    """

    description: str
    documents: Callable[[Watch], dict[str, list[str]]]
    levels: tuple[str, ...]
    puzzles: Callable[[list[str], str, int, int], Iterable[Puzzle]]
    solved: Callable[[Puzzle, str], bool]
    side: int = 0
    box: tuple[int, int] = (0, 0)


def splits_of(documents: list[str], held_out: int) -> dict[str, list[str]]:
    """Documents by split: the first ``held_out`` for test, as many after them for validation."""
    return {
        "test": documents[:held_out],
        "validation": documents[held_out : 2 * held_out],
        "train": documents[2 * held_out :],
    }
