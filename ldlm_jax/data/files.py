"""Documents of files and folders: text, JSONL and Parquet, and what is none of them by its name."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ldlm_jax.errors import UserError, did_you_mean


def read_path(path: Path, text_field: str) -> Iterator[str]:
    """Documents of a file, or of the known files of a folder; a file of unknown kind is text.

    Raises:
      UserError: a file cannot be read as what it is; names file and line.
    """
    files = files_of(path)
    if not files:
        raise UserError(f"{path}: no .txt, .jsonl or .parquet file found in this folder.")
    for file in files:
        kind = file.suffix.lower()
        if kind in _CONVERT:
            raise UserError(f"{file}: {_CONVERT[kind]}.")
        # A pipe can be read once, a device never ends; what is missing is told by opening it.
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no ordinary file; copy what it gives into one.")
        try:
            for text in _READERS.get(kind, _read_txt)(file, text_field):
                if text:
                    yield text
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}.") from error


def files_of(path: Path) -> list[Path]:
    """The files of a source: itself, or those of known kinds in a folder, in their order."""
    if not path.is_dir():
        return [path]
    return [file for file in _walk(path)[0] if file.suffix.lower() in _READERS]


def files_not_read(path: Path) -> list[Path]:
    """What is not read of a folder: files of no known kind, and what is hidden."""
    if not path.is_dir():
        return []
    files, hidden = _walk(path)
    return sorted([*hidden, *(f for f in files if f.suffix.lower() not in _READERS)])


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder, links to folders followed, each folder once; and what is hidden.

    Hidden are names that begin with a dot, such as ``.git``, and the folder of ``._`` files that
    archives of macOS hold: copies and records that are no text of the corpus.
    """
    files, hidden, seen = [], [], set()
    for name, folders, names in os.walk(folder, followlinks=True):
        here, real = Path(name), os.path.realpath(name)
        folders.sort()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        apart = [n for n in (*folders, *names) if n.startswith(".") or n == "__MACOSX"]
        hidden += [here / n for n in apart]
        folders[:] = [n for n in folders if n not in apart]
        files += [here / n for n in names if n not in apart]
    return sorted(files), sorted(hidden)


def as_document(value, where: str, text_field: str) -> str:
    """A value as a document, without white space at its ends; null is an empty one.

    Whoever reads documents skips empty ones.

    Raises:
      UserError: it is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}: the field {text_field!r} holds {type(value).__name__}, not text; set "
            "data.text_field to a field of text, or convert the file."
        )
    return value.strip()


# First bytes of files that are not what their name says, and what to do about it.
_OTHER_KINDS = {
    b"\xff\xfe\x00\x00": "UTF-32 text: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\x00\x00\xfe\xff": "UTF-32 text: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\xff\xfe": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "compressed: unpack it with `gunzip`",
    b"\x28\xb5\x2f\xfd": "compressed: unpack it with `unzstd`",
    b"\xfd7zXZ": "compressed: unpack it with `unxz`",
    b"BZh": "compressed: unpack it with `bunzip2`",
    b"\x04\x22\x4d\x18": "compressed: unpack it with `unlz4`",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"%PDF-": "a PDF: convert it with `pdftotext`",
    b"PAR1": "a Parquet file: give it the ending .parquet",
}
# Kinds that hold text among other things: read as text, their marks would be trained on.
_TO_JSONL = "write its texts to a .jsonl file, one JSON object a line"
_CONVERT = {kind: f"{kind} files are not read; {_TO_JSONL}" for kind in (".json", ".csv", ".tsv")}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file and their numbers from 1; a file may be larger than memory."""
    with file.open("rb") as lines:
        start = lines.read(8)
        for mark, advice in _OTHER_KINDS.items():
            if start.startswith(mark):
                raise UserError(f"{file} is {advice}.")
        lines.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)  # a byte order mark is no text
        for number, line in enumerate(lines, 1):
            if b"\0" in line:
                raise UserError(
                    f"{file}:{number}: holds a NUL byte, so it is no UTF-8 text; convert UTF-16 "
                    "with `iconv -f UTF-16LE -t UTF-8`, and leave out binary files."
                )
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}:{number}: not UTF-8 text (byte {error.start} of the line); convert "
                    "the file, for example with `iconv -f LATIN1 -t UTF-8`."
                ) from error


def _read_txt(file: Path, _: str) -> Iterator[str]:
    paragraph: list[str] = []
    for _, line in _lines(file):
        words = line.removeprefix("\ufeff").split()  # a mark of a file that was joined to others
        if not words:
            yield " ".join(paragraph)
            paragraph = []
        paragraph += words
    yield " ".join(paragraph)


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        text = as_document(_field(line, where, text_field), where, text_field)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a character, as \\ud800
            raise UserError(f"{where}: not Unicode text ({error.reason}).") from error
        yield text


def _field(line: str, where: str, text_field: str):
    """A field of the object in a line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of too many digits are ValueErrors
        raise UserError(
            f"{where}: not JSON ({error}); a .jsonl file has one object a line."
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: a {type(record).__name__} where an object with a field {text_field!r} is "
            "expected; a .jsonl file has one object a line."
        )
    if text_field not in record:
        known = ", ".join(map(repr, list(record)[:10]))[:200]
        raise UserError(f"{where}: no field {text_field!r}, only {known}; set data.text_field.")
    return record[text_field]


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise UserError(
                    f"{file}: no column {text_field!r}; set data.text_field. "
                    + did_you_mean(text_field, names)
                )
            for batch in table.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield as_document(value, f"{file}, row {row}", text_field)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a readable Parquet file ({reason}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: after row {row} its text is not UTF-8 ({error}).") from error


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl,
            ".parquet": _read_parquet}  # fmt: skip
