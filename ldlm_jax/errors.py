"""The one exception that reaches a user as a single line instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: the message says what was wrong and what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known names, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}."


def check_shares(section: str, config, names: tuple[str, ...]) -> None:
    """Raise UserError unless these attributes of a config section lie in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{section}.{name} = {getattr(config, name)}: must be in [0, 1].")


def fits_type(value, want: type) -> bool:
    """Whether a user's value is of a type; whole numbers are numbers, True and False are not."""
    fits = isinstance(value, (int, float) if want is float else want)
    return fits and (want is bool or not isinstance(value, bool))
