"""Paths in star graphs: which arm leads to the goal can be told from its far end alone.

The task of Bachmann and Nagarajan 2024, "The pitfalls of next-token prediction". A text is the
edges in random order, start and goal after a ``/``, and after a ``=`` the path:
``ab,cd,bc,ae/ad=abcd``. A node is a letter.
"""

import random
import string

from ldlm_jax.puzzles.base import OPEN, Puzzle, Task, Watch, splits_of, unwatched

ARMS, LENGTH = 5, 5  # arms of the star, and nodes of an arm behind the centre
COUNT, HELD_OUT = 200_000, 1000


def make(rng: random.Random) -> str:
    """A graph and its path."""
    names = rng.sample(string.ascii_letters, 1 + ARMS * LENGTH)
    arms = [names[:1] + names[1 + a * LENGTH : 1 + (a + 1) * LENGTH] for a in range(ARMS)]
    edges = [f"{a}{b}" for arm in arms for a, b in zip(arm, arm[1:], strict=False)]
    rng.shuffle(edges)
    path = "".join(rng.choice(arms))
    return ",".join(edges) + f"/{path[0]}{path[-1]}=" + path


def solved(puzzle: Puzzle, text: str) -> bool:
    """Whether a text goes from start to goal along edges of the puzzle, as long as an arm is."""
    if not puzzle.kept(text):
        return False
    graph, _, path = text.partition("=")
    edges, _, ends = graph.partition("/")
    steps = {a + b for a, b in zip(path, path[1:], strict=False)}
    return path[0] + path[-1] == ends and steps <= set(edges.split(","))


def _documents(watch: Watch = unwatched) -> dict[str, list[str]]:
    rng = random.Random(ARMS)
    made = (make(rng) for _ in range(COUNT))  # of 52 letters: no two are alike
    return splits_of(list(watch(made, "puzzles", "graphs", COUNT)), HELD_OUT)


def _puzzles(texts: list[str], level: str, count: int, seed: int) -> list[Puzzle]:
    chosen = random.Random(seed).sample(texts, min(count, len(texts)))
    return [Puzzle(text.partition("=")[0] + "=" + OPEN * (LENGTH + 1)) for text in chosen]


TASK = Task(
    f"Paths in stars of {ARMS} arms of {LENGTH} nodes (generated)",
    _documents, ("all",), _puzzles, solved,
)  # fmt: skip
