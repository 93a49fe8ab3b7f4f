"""Sudoku of side 4, 6 and 9: random grids, puzzles with exactly one solution, and a check.

A grid is a text of its digits, row by row. All is deterministic by seed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np

from ldlm_jax.puzzles.base import OPEN, Puzzle, Task, Watch, splits_of, unwatched


class Solution(NamedTuple):
    """What a search found.

    Attributes:
      count: of solutions, up to the limit of the search.
      text: the first solution; empty for none.
      wrong_guesses: digits that were tried and led nowhere, or to a further solution.
      guesses: cells at which more than one digit was possible.
    """

    count: int
    text: str
    wrong_guesses: int
    guesses: int


@dataclass(frozen=True)
class Sudoku:
    """The rules of one size.

    Attributes:
      rows: of a box.
      columns: of a box; a side has ``rows * columns`` cells.
    """

    rows: int
    columns: int

    @property
    def side(self) -> int:
        """Cells of a side, and the largest digit."""
        return self.rows * self.columns

    @cached_property
    def units(self) -> np.ndarray:
        """The cells of each row, column and box (3 side, side)."""
        cell = np.arange(self.side**2).reshape(self.side, self.side)
        boxes = cell.reshape(self.columns, self.rows, self.rows, self.columns)
        return np.concatenate([cell, cell.T, boxes.swapaxes(1, 2).reshape(self.side, self.side)])

    @cached_property
    def _peers(self) -> list[list[int]]:
        return [
            sorted({int(c) for unit in self.units if cell in unit for c in unit} - {cell})
            for cell in range(self.side**2)
        ]

    def is_solved(self, text: str) -> bool:
        """Whether a text is a grid that keeps all rules."""
        if len(text) != self.side**2 or not (text.isascii() and text.isdecimal()):
            return False
        digits = np.array([int(c) for c in text])
        return bool((np.sort(digits[self.units], axis=1) == 1 + np.arange(self.side)).all())

    def conflicts(self, text: str) -> list[int]:
        """Cells whose digit another cell of their row, column or box has."""
        return [
            cell for cell, peers in enumerate(self._peers)
            if text[cell] != OPEN and any(text[peer] == text[cell] for peer in peers)
        ]  # fmt: skip

    def solve(self, given: str, limit: int = 2, rng: random.Random | None = None) -> Solution:
        """Search for solutions, always at the cell with fewest possible digits.

        Args:
          given: the grid, with OPEN for empty cells.
          limit: stop after so many.
          rng: order in which digits are tried; without one, ascending.
        """
        masks = [(1 << (self.side + 1)) - 2] * self.side**2  # possible digits of each cell, as bits
        grid = [0] * self.side**2
        open_cells = {cell for cell, c in enumerate(given) if c == OPEN}
        for cell, c in enumerate(given):
            if c == OPEN:
                continue
            if not masks[cell] >> int(c) & 1:
                return Solution(0, "", 0, 0)
            grid[cell] = int(c)
            for peer in self._peers[cell]:
                masks[peer] &= ~(1 << int(c))
        search = _Search(self._peers, limit, rng, masks, grid, open_cells)
        search.run()
        text = "".join(map(str, search.first))
        return Solution(search.count, text, search.wrong_guesses, search.guesses)

    def random_grid(self, rng: random.Random) -> str:
        """A full grid: random boxes on the diagonal, and a random way to fill the rest."""
        cells = [OPEN] * self.side**2
        for box in range(min(self.rows, self.columns)):
            # Boxes that share neither rows nor columns can be filled at will.
            unit = self.units[2 * self.side + box * (self.rows + 1)]
            for cell, digit in zip(unit, rng.sample(range(1, self.side + 1), self.side),
                                   strict=True):  # fmt: skip
                cells[cell] = str(digit)
        # Of side 4, some such boxes have no grid.
        return self.solve("".join(cells), 1, rng).text or self.random_grid(rng)

    def puzzle(self, grid: str, clues: int, rng: random.Random) -> Puzzle:
        """The grid with so many cells given, chosen by chance, and no other solution.

        Fewer cannot be reached by every order of removing them: then it is tried again. With 0
        clues, as many cells are removed as one order allows: each clue of the puzzle is needed.
        """
        while True:
            cells = list(grid)
            for cell in rng.sample(range(len(grid)), len(grid)):
                if len(grid) - cells.count(OPEN) == clues:
                    break
                cells[cell] = OPEN
                if self.solve("".join(cells)).count > 1:
                    cells[cell] = grid[cell]
            if not clues or len(grid) - cells.count(OPEN) == clues:
                return Puzzle("".join(cells))

    def invariants(self, grids: list[str]) -> list[bytes]:
        """Equal for grids that a symmetry of Sudoku makes equal (seldom for others).

        Two rows make a permutation of the digits; swapping columns or renaming digits keeps the
        lengths of its cycles, swapping rows of a band or bands keeps their multiset. The same with
        columns, and of both in either order, as the grid may be transposed.
        """
        digits = np.array([list(map(int, grid)) for grid in grids], np.int8) - 1
        digits = digits.reshape(-1, self.side, self.side)
        rows = _pair_cycles(digits, self.rows)
        columns = _pair_cycles(digits.swapaxes(1, 2), self.columns)
        return [b"|".join(sorted((a.tobytes(), b.tobytes()))) for a, b in
                zip(rows, columns, strict=True)]  # fmt: skip


class _Search:
    """Depth-first search with the state of one grid, changed and restored in place."""

    def __init__(self, peers, limit, rng, masks, grid, open_cells):
        self._peers, self._limit, self._rng = peers, limit, rng
        self._masks, self._grid, self._open = masks, grid, open_cells
        self.first, self.count, self.wrong_guesses, self.guesses = (), 0, 0, 0

    def run(self) -> None:
        """Search on from the present state."""
        if not self._open:
            self.first = self.first or tuple(self._grid)
            self.count += 1
            return
        masks = self._masks
        cell = min(self._open, key=lambda c: masks[c].bit_count())
        digits = [d for d in range(1, masks[cell].bit_length()) if masks[cell] >> d & 1]
        if self._rng:
            self._rng.shuffle(digits)
        self.guesses += len(digits) > 1
        self._open.remove(cell)
        for digit in digits:
            before, bit = self.count, 1 << digit
            changed = [p for p in self._peers[cell] if p in self._open and masks[p] & bit]
            for peer in changed:
                masks[peer] ^= bit
            self._grid[cell] = digit
            self.run()
            for peer in changed:
                masks[peer] ^= bit
            self.wrong_guesses += self.count == before and len(digits) > 1
            if self.count >= self._limit:
                break
        self._open.add(cell)


def _pair_cycles(grids: np.ndarray, band: int) -> np.ndarray:
    """For grids (G, S, S) of digits from 0: sorted cycle types of all pairs of rows (G, pairs)."""
    G, S, _ = grids.shape
    place = np.argsort(grids, axis=2)  # of each digit in its row
    codes = []
    for i in range(S):
        for j in range(i):
            step = np.take_along_axis(grids[:, j], place[:, i], axis=1)  # digit to digit (G, S)
            at, length = step, np.zeros((G, S), np.int64)
            for turn in range(1, S + 1):
                length = np.where((at == np.arange(S)) & (length == 0), turn, length)
                at = np.take_along_axis(step, at, axis=1)
            # Digits by the length of their cycle, as one number; and whether the rows share a band.
            code = np.sum((S + 1) ** np.minimum(length, S - 1), axis=1)
            codes.append(2 * code + (i // band == j // band))
    return np.sort(np.stack(codes, axis=1), axis=1)


# ---------------------------------------------------------------------------- as a task

HELD_OUT = 1000


def _documents(sudoku: Sudoku, count: int, watch: Watch = unwatched) -> dict[str, list[str]]:
    """Distinct grids by split: of held-out ones, no symmetric copy is trained on.

    Of side 6 there are but 49 grids up to symmetry, of side 4 two: there the grids themselves are
    kept apart, which is less.
    """
    rng, grids = random.Random(sudoku.side), set()

    def new() -> Iterator[str]:
        while len(grids) < count:
            grid = sudoku.random_grid(rng)
            if grid not in grids:
                grids.add(grid)
                yield grid

    texts = list(watch(new(), "puzzles", "grids", count))
    held = min(HELD_OUT, count // 10)
    splits = splits_of(texts, held)
    if sudoku.side == 9:
        seen = set(sudoku.invariants(texts[: 2 * held]))
        kinds = sudoku.invariants(splits["train"])
        pairs = zip(splits["train"], kinds, strict=True)
        splits["train"] = [text for text, kind in pairs if kind not in seen]
    return splits


# Clues of the puzzles of each side; those of side 9 as in the literature, about 30 of 81.
_CLUES = {4: 6, 6: 12, 9: 30}
EASY, HARD = "easy", "hard"


def _puzzles(
    sudoku: Sudoku, grids: list[str], level: str, count: int, seed: int
) -> Iterator[Puzzle]:
    """Puzzles of a level, each of another grid as long as they last.

    ``N given``: N clues, chosen by chance. ``easy``: so many, and no cell ever needs a guess, as
    one digit alone is possible in it. ``hard``: no clue can be left out, and a guess is needed.
    """
    rng, clues = random.Random(seed), _CLUES[sudoku.side]
    # Each grid in turn, and again from the first.
    grids_in_turn = cycle(rng.sample(grids, len(grids)))

    def fits(puzzle: Puzzle) -> bool:
        if level not in (EASY, HARD):
            return True
        return (sudoku.solve(puzzle.given).guesses > 0) == (level == HARD)

    made = (sudoku.puzzle(grid, 0 if level == HARD else clues, rng) for grid in grids_in_turn)
    return islice(filter(fits, made), count)


def sudoku_task(rows: int, columns: int, count: int) -> Task:
    """Sudoku with boxes of that size, as a task with so many grids."""
    sudoku = Sudoku(rows, columns)
    side = sudoku.side
    return Task(
        f"Sudoku grids of side {side} (generated)",
        partial(_documents, sudoku, count),
        (f"{_CLUES[side]} given", EASY, HARD),
        partial(_puzzles, sudoku),
        lambda puzzle, text: puzzle.kept(text) and sudoku.is_solved(text),
        side,
        (rows, columns),
    )
