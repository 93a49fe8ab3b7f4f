"""What is told beside data on disk: JSON with a checksum and a version; and damage, named."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ldlm_jax.errors import UserError

_CHECKSUM = "sha256"


def _checksum(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _anew(folder: Path) -> str:
    return f"delete {folder} and start the same command again, which makes it anew."


def write_json(file: Path, values: dict) -> None:
    """Write values with their checksum."""
    values = json.loads(json.dumps(values))
    file.write_text(json.dumps(values | {_CHECKSUM: _checksum(values)}) + "\n", encoding="utf-8")


def read_json(file: Path, needs: tuple[str, ...] = (), check: bool = True) -> dict:
    """What ``write_json`` wrote; without a checksum, as of versions before 0.2, as it is.

    Args:
      file: the file.
      needs: keys that must be there.
      check: whether the checksum must fit; to read a version, whose checksum may be another.

    Raises:
      UserError: it is missing, or not what was written.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        stored = values.pop(_CHECKSUM, None)
        if (not check or stored in (None, _checksum(values))) and all(
            key in values for key in needs
        ):
            return values
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    raise UserError(f"{file} is damaged: {_anew(file.parent)}")


def check_version(folder: Path, found: int, known: int, instead: str = "") -> None:
    """Raise UserError if a folder was written in a format of a later version than this.

    Args:
      folder: the folder.
      found: its format.
      known: the latest that this version reads.
      instead: what else helps than an update.
    """
    if not isinstance(found, int) or found > known:
        raise UserError(
            f"{folder} was written by a newer version of ldlm_jax (format {found}, this one reads "
            f"up to {known}): update ldlm_jax{instead}."
        )


@contextlib.contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Inside, what array_record says of a damaged file becomes a ``UserError`` with its folder."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{folder} is damaged ({reason}): {_anew(folder)}") from error
