"""Documents on disk: many to a record of array_record, in the order in which they were written."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from ldlm_jax.data.rows import shard_name
from ldlm_jax.data.stamped import check_version, damage_named, read_json, write_json
from ldlm_jax.errors import UserError

# Of the format; text of version 0.1 and of its successor's first months has no stamp.
VERSION = 1
STAMP = "text.json"
_RECORD_BYTES = 2**20
_SHARD_RECORDS = 1024


def write_texts(folder: Path, splits: dict[str, Iterable[str]]) -> None:
    """Write the documents of every split, whole or not at all.

    Raises:
      UserError: a split has no documents.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for split, documents in splits.items():
        files, writer = 0, None
        for count, record in enumerate(_records(documents)):
            if count % _SHARD_RECORDS == 0:
                if writer:
                    writer.close()
                writer = ArrayRecordWriter(str(partial / f"{split}-{files}"), "group_size:1")
                files += 1
            writer.write(json.dumps(record, ensure_ascii=False).encode())
        if writer is None:
            raise UserError(f"the {split} split of {folder} has no documents: give it more text.")
        writer.close()
        for number in range(files):
            (partial / f"{split}-{number}").rename(partial / shard_name(split, number, files))
    write_json(partial / STAMP, {"version": VERSION})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _records(documents: Iterable[str]) -> Iterator[list[str]]:
    record, size = [], 0
    for text in documents:
        record.append(text)
        size += len(text)
        if size >= _RECORD_BYTES:
            yield record
            record, size = [], 0
    if record:
        yield record


@dataclass(frozen=True)
class Texts:
    """Documents of one split, in records of about a megabyte."""

    folder: Path
    split: str

    def __len__(self) -> int:
        return len(self._source)

    def read(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[list[str]]:
        """The documents of some records, record by record."""
        source = self._source
        for i in range(start, len(source) if stop is None else stop, step):
            with damage_named(self.folder):
                record = json.loads(source[i])
            yield record

    @property
    def _source(self) -> ArrayRecordDataSource:
        files = sorted(map(str, self.folder.glob(f"{self.split}-*.array_record")))
        with damage_named(self.folder):
            return ArrayRecordDataSource(files)


@dataclass(frozen=True)
class _TfdsTexts:
    """The same of version 0.1: a TFDS dataset with a record a document."""

    folder: Path
    split: str

    # Documents that are handed over together.
    TOGETHER = 4096

    def __len__(self) -> int:
        return -(-len(self._source) // self.TOGETHER)

    def read(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[list[str]]:
        source = self._source
        for i in range(start, len(self) if stop is None else stop, step):
            part = range(i * self.TOGETHER, min((i + 1) * self.TOGETHER, len(source)))
            yield [source[k]["text"].decode("utf-8") for k in part]

    @property
    def _source(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(str(self.folder)).as_data_source(self.split)


def open_texts(folder: Path, split: str) -> Texts:
    """The documents of a split; a folder of version 0.1 is read as well.

    Raises:
      UserError: it was written by a newer version, or is damaged.
    """
    if (folder / STAMP).is_file():
        found = read_json(folder / STAMP, ("version",))["version"]
        anew = ", or prepare the data anew under another data.root"
        check_version(folder, found, VERSION, instead=anew)
    old = (folder / "dataset_info.json").is_file()
    return _TfdsTexts(folder, split) if old else Texts(folder, split)


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """The documents of one split of a prepared corpus."""
    for record in open_texts(folder, split).read():
        yield from record
