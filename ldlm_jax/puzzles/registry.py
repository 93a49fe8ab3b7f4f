"""The puzzles by name; each name is a corpus, too."""

from ldlm_jax.puzzles.base import Task
from ldlm_jax.puzzles.countdown import countdown_task
from ldlm_jax.puzzles.star_graph import TASK as STAR_GRAPH
from ldlm_jax.puzzles.sudoku import sudoku_task

TASKS: dict[str, Task] = {
    "sudoku": sudoku_task(3, 3, 202_000),
    "sudoku6": sudoku_task(2, 3, 100_000),
    "sudoku4": sudoku_task(2, 2, 288),  # all there are
    "countdown4": countdown_task(4),
    "countdown5": countdown_task(5),
    "star_graph": STAR_GRAPH,
}
