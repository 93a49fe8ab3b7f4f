"""Countdown: reach a number with some others, each used once, by + - * and whole division.

A text is the numbers, the target after a ``>``, and after a ``:`` one equation for each operation:
``44,15,79,50>25:44-15=29,79-50=29,...``. Each equation takes two numbers that are left and leaves
its result; the last one leaves the target alone.
"""

import random
import re
from collections.abc import Iterator
from functools import partial

from ldlm_jax.puzzles.base import Puzzle, Task, Watch, splits_of, unwatched

LARGEST = 100  # number or target, as in Gandhi et al. 2024, "Stream of Search"
COUNT = 200_000
HELD_OUT = 1000


def _result(a: int, sign: str, b: int) -> int | None:
    """Of an operation on whole numbers from 1 on; None where there is none."""
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b if a > b else None
    if sign == "*":
        return a * b
    return a // b if b and a % b == 0 else None


def make(numbers: int, rng: random.Random) -> str:
    """A solved puzzle: random numbers, joined at random until one is left, which is the target."""
    while True:
        start = [rng.randint(1, LARGEST) for _ in range(numbers)]
        left, equations = list(start), []
        while len(left) > 1:
            a, b = (left.pop(rng.randrange(len(left))) for _ in range(2))
            a, b = max(a, b), min(a, b)
            possible = [(s, r) for s in "+-*/" if (r := _result(a, s, b)) and r <= LARGEST**2]
            sign, result = rng.choice(possible)
            equations.append(f"{a}{sign}{b}={result}")
            left.append(result)
        if 10 <= left[0] <= LARGEST:
            return ",".join(map(str, start)) + f">{left[0]}:" + ",".join(equations)


def solved(puzzle: Puzzle, text: str) -> bool:
    """Whether a text reaches the target of the puzzle by right equations on its numbers alone."""
    if not puzzle.kept(text) or not text.isascii():
        return False
    found = re.fullmatch(r"([\d,]+)>(\d+):(.*)", text)
    left = [int(number) for number in found[1].split(",")]
    for equation in found[3].split(","):
        parts = re.fullmatch(r"(\d{1,6})([-+*/])(\d{1,6})=(\d{1,6})", equation)
        if not parts:
            return False
        a, b, result = int(parts[1]), int(parts[3]), int(parts[4])
        if _result(a, parts[2], b) != result:
            return False
        for number in (a, b):
            if number not in left:
                return False
            left.remove(number)
        left.append(result)
    return left == [int(found[2])]


def _documents(numbers: int, watch: Watch = unwatched) -> dict[str, list[str]]:
    """Solved puzzles by split; no held-out question, in any order of its numbers, is trained on."""
    rng, by_question = random.Random(numbers), {}

    def new() -> Iterator[str]:
        while len(by_question) < COUNT:
            text = make(numbers, rng)
            start, target = text.split(":")[0].split(">")
            question = tuple(sorted(start.split(","))), target
            if question not in by_question:
                by_question[question] = text
                yield text

    return splits_of(list(watch(new(), "puzzles", "questions", COUNT)), HELD_OUT)


def _puzzles(texts: list[str], level: str, count: int, seed: int) -> list[Puzzle]:
    """The questions of so many documents, the answer open."""
    chosen = random.Random(seed).sample(texts, min(count, len(texts)))
    return [Puzzle(text[: text.index(":") + 1], open_end=True) for text in chosen]


def countdown_task(numbers: int) -> Task:
    """Countdown with so many numbers, as a task."""
    return Task(
        f"Countdown with {numbers} numbers up to {LARGEST} (generated)",
        partial(_documents, numbers), ("all",), _puzzles, solved,
    )  # fmt: skip
