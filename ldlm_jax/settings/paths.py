"""Paths as users write them."""

import os
from pathlib import Path

from ldlm_jax.errors import UserError

# Bytes of a file's or folder's name, on the usual file systems.
_LONGEST_NAME = 255


def local_path(path: str) -> Path:
    """A path of this machine, ``~`` for the home folder.

    Raises:
      UserError: it is a URL, of which a local folder would be made silently, or no file can be
        called so.
    """
    if path.lower().startswith("file://"):
        raise UserError(f"{path}: write the path alone, without file://.")
    if "://" in path:
        raise UserError(
            f"{path}: remote stores are not supported; mount it, and give the mounted folder."
        )
    expanded = Path(os.path.expanduser(path))
    if path.startswith("~") and str(expanded).startswith("~"):
        raise UserError(
            f"{path}: no such home folder; for a name that begins with ~ write ./{path}"
        )
    try:
        longest = max((len(os.fsencode(part)) for part in expanded.parts), default=0)
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r}: no file can have this name ({error.reason}).") from error
    if longest > _LONGEST_NAME or "\0" in path:
        raise UserError(
            f"{path[:60]!r}, of {len(path)} characters: a name may have {_LONGEST_NAME} bytes, and "
            "no NUL."
        )
    return expanded


def finite_file(path: str) -> Path:
    """A file of this machine that is read as a whole; it need not be there.

    Raises:
      UserError: as ``local_path``; or reading would never end, as of a device.
    """
    file = local_path(path)
    if file.exists() and not (file.is_file() or file.is_fifo()):
        raise UserError(f"cannot read {file}: it is no file.")
    return file


def output_file(path: str) -> Path:
    """A file of this machine that can be written, as far as can be told before it is.

    Raises:
      UserError: as ``local_path``; or its folder is not there, or may not be written.
    """
    file = local_path(path)
    if not path or file.is_dir():
        raise UserError(f"cannot write {path!r}: name a file.")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder {file.parent}.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"cannot write {file}: permission denied.")
    return file
