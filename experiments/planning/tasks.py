"""Small puzzles: the first token to be generated depends on the last ones.

Command: python experiments/planning/tasks.py corpora/puzzles.jsonl 20000
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

Puzzle = tuple[str, str, str]  # the text before the solution, the solution, and the text after it


def add(rng: random.Random) -> Puzzle:
    """A sum, its first digit first: carries come from the other end."""
    a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    return f"{a}+{b}=", f"{a + b:04d}", ""


def addend(rng: random.Random) -> Puzzle:
    """The first number of a sum, of which the second and the result are given."""
    a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    return "", f"{a}", f"+{b}={a + b:04d}"


def order(rng: random.Random) -> Puzzle:
    """Letters in their order."""
    letters = rng.sample("abcdefghijklmnopqrstuvwxyz", 6)
    return "".join(letters) + ">", "".join(sorted(letters)), ""


def brackets(rng: random.Random) -> Puzzle:
    """The middle of a balanced string of twelve brackets of two kinds, between two given thirds."""
    text, stack = "", []
    while len(text) < 12:
        room = 12 - len(text)
        if len(stack) < room and (not stack or rng.random() < 0.55):
            stack.append(rng.choice("(["))
            text += stack[-1]
        else:
            text += ")" if stack.pop() == "(" else "]"
    return "~" + text[:4], text[4:8], text[8:]


def balanced(text: str) -> bool:
    """Whether every bracket is closed by its like."""
    stack = []
    for c in text:
        if c in "([":
            stack.append(c)
        elif not stack or stack.pop() + c not in ("()", "[]"):
            return False
    return not stack


TASKS: dict[str, Callable[[random.Random], Puzzle]] = {
    "add": add, "addend": addend, "order": order, "brackets": brackets,
}  # fmt: skip


def right(task: str, puzzle: Puzzle, text: str) -> bool:
    """Whether a whole text solves the puzzle (brackets: with any middle that balances)."""
    before, solution, after = puzzle
    if task == "brackets":
        kept = text.startswith(before) and text.endswith(after)
        return kept and len(text) == 13 and balanced(text[1:])
    return text == before + solution + after


def main(out: str, count: str) -> None:
    """Write so many puzzles of each kind, shuffled; held-out ones come from another seed."""
    rng = random.Random(0)
    texts = [
        "".join(make(rng))
        for name, make in TASKS.items()
        if name != "addend"  # sums, seen from the other side
        for _ in range(int(count))
    ]
    rng.shuffle(texts)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


if __name__ == "__main__":
    main(*sys.argv[1:])
