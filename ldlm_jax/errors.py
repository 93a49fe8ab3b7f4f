"""The one exception that reaches a user as a single line instead of a traceback."""

import difflib
from collections.abc import Iterable

# Exit code of what another try may put right: "try again later" of sysexits.h.
TRY_AGAIN = 75


class UserError(Exception):
    """Something the user can put right: the message says what was wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known names, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}."
