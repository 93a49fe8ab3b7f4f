"""Rows of arrays on disk: many rows to a record of array_record, read and decoded many at a time.

A folder holds shards ``SPLIT-00000-of-00002.array_record`` and ``rows.json``, which says what a row
is. The bytes of a record are those of its arrays, one array after the other.

Shape letters: B rows asked for, R rows of a record, S slots in memory.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy learns what bfloat16 is)
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from ldlm_jax.data.stamped import damage_named, read_json, write_json
from ldlm_jax.errors import UserError

VERSION = 2
FACTS = "rows.json"
_RECORD_BYTES = 2**17
_SHARD_BYTES = 2**28
# A split of no more bytes stays in memory once it was read; of a larger one, a part of this size.
_MEMORY_BYTES = 2**30

Arrays = dict[str, np.ndarray]


def shard_name(split: str, number: int, of: int) -> str:
    """Name of a shard's file."""
    return f"{split}-{number:05d}-of-{of:05d}.array_record"


class ShardWriter:
    """Writes rows to one file."""

    def __init__(self, path: Path, example: Arrays):
        """Open the file; ``example`` is any batch of the rows to come."""
        self._per_record = rows_per_record(example)
        self._waiting: list[Arrays] = []
        self._writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        self.rows = 0

    def add(self, rows: Arrays) -> None:
        """Append rows: arrays of one length."""
        self._waiting.append(rows)
        self.rows += _length(rows)
        self._write(self._per_record)

    def _write(self, at_least: int) -> None:
        count = sum(map(_length, self._waiting))
        if count < at_least or not count:
            return
        rows = {k: np.concatenate([part[k] for part in self._waiting]) for k in self._waiting[0]}
        end = count - count % at_least
        for start in range(0, end, self._per_record):
            part = slice(start, min(start + self._per_record, end))
            self._writer.write(b"".join(np.ascontiguousarray(x[part]).tobytes()
                                        for x in rows.values()))  # fmt: skip
        self._waiting = [{k: x[end:] for k, x in rows.items()}] if end < count else []

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._write(1)
        self._writer.close()


def _length(rows: Arrays) -> int:
    return len(next(iter(rows.values())))


def _bytes_of_row(rows: Arrays) -> int:
    return sum(x.dtype.itemsize * int(np.prod(x.shape[1:])) for x in rows.values())


def rows_per_record(example: Arrays) -> int:
    """Rows in each record of a shard but the last."""
    return max(1, _RECORD_BYTES // _bytes_of_row(example))


def write_facts(folder: Path, example: Arrays, shards: dict[str, list[int]]) -> None:
    """Say what the rows of a folder are; ``shards`` holds the rows of every file by split."""
    arrays = {name: [x.dtype.name, x.shape[1:]] for name, x in example.items()}
    facts = {"version": VERSION, "arrays": arrays, "rows_per_record": rows_per_record(example),
             "shards": shards}  # fmt: skip
    write_json(folder / FACTS, facts)


def write_rows(folder: Path, batches: Iterable[Arrays], split: str = "train") -> None:
    """Write a folder of one split, whole or not at all.

    Args:
      folder: what stands there is replaced.
      batches: rows in their order, some at a time.
      split: its name.

    Raises:
      UserError: there are no rows.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards, writer, example = [], None, None
    for example in batches:
        if writer is None:
            writer = ShardWriter(partial / str(len(shards)), example)
        writer.add(example)
        if writer.rows * _bytes_of_row(example) >= _SHARD_BYTES:
            writer.close()
            shards.append(writer.rows)
            writer = None
    if writer is not None:
        writer.close()
        shards.append(writer.rows)
    if not shards:
        raise UserError(f"the {split} split of {folder} has no rows: give it more text.")
    for number in range(len(shards)):
        (partial / str(number)).rename(partial / shard_name(split, number, len(shards)))
    write_facts(partial, example, {split: shards})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class Rows:
    """The rows of one split, at random, many at a time. For one thread."""

    def __init__(self, folder: Path, split: str):
        """Open the split.

        Raises:
          UserError: the folder was written by another version, is damaged, or lacks the split.
        """
        self._folder, facts = folder, _facts(folder)
        if split not in facts["shards"]:
            raise UserError(f"{folder} holds no split {split!r}, only {', '.join(facts['shards'])}")
        shards = np.array(facts["shards"][split], np.int64)
        files = [str(folder / shard_name(split, i, len(shards))) for i in range(len(shards))]
        with damage_named(folder):
            self._source, self._per_record = ArrayRecordDataSource(files), facts["rows_per_record"]
        self._first_row = np.append(0, np.cumsum(shards))
        self._first_record = np.append(0, np.cumsum(-(-shards // self._per_record)))
        self._arrays = {k: (np.dtype(d), tuple(s)) for k, (d, s) in facts["arrays"].items()}
        self.records, per_record = int(self._first_record[-1]), self._per_record
        of_record = sum(per_record * t.itemsize * int(np.prod(s)) for t, s in self._arrays.values())
        slots = min(self.records, max(1, _MEMORY_BYTES // of_record))
        self.fits_in_memory = slots == self.records
        # Which slot holds a record, and which record is in a slot; -1 for none.
        self._slot_of, self._record_in = np.full(self.records, -1), np.full(0, -1)
        self._held = {k: np.empty((0, per_record, *s), t) for k, (t, s) in self._arrays.items()}
        self._add_slots(slots)

    def __len__(self) -> int:
        return int(self._first_row[-1])

    def __getitem__(self, row: int) -> Arrays:
        """One row."""
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return {k: x[0] for k, x in self.take(np.array([row % len(self)])).items()}

    def __iter__(self) -> Iterator[Arrays]:
        return (self[i] for i in range(len(self)))

    def take(self, rows_B: np.ndarray) -> Arrays:
        """Arrays (B, ...) of the rows of these numbers; what is stored unsigned comes as int32."""
        shard_B = np.searchsorted(self._first_row, rows_B, side="right") - 1
        record_B, place_B = np.divmod(rows_B - self._first_row[shard_B], self._per_record)
        record_B += self._first_record[shard_B]
        self._load(np.unique(record_B))
        slot_B = self._slot_of[record_B]
        found = {name: held[slot_B, place_B] for name, held in self._held.items()}
        return {k: x.astype(np.int32) if x.dtype.kind == "u" else x for k, x in found.items()}

    def rows_of(self, record_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row and number of rows of some records."""
        shard_B = np.searchsorted(self._first_record, record_B, side="right") - 1
        first_B = self._first_row[shard_B]
        first_B = first_B + (record_B - self._first_record[shard_B]) * self._per_record
        return first_B, np.minimum(self._first_row[shard_B + 1] - first_B, self._per_record)

    @property
    def per_record(self) -> int:
        """Rows R of a record; the last of a shard may have fewer."""
        return self._per_record

    def _load(self, records: np.ndarray) -> None:
        """See that these records are in memory."""
        missing = records[self._slot_of[records] < 0]
        if not len(missing):
            return None
        wanted = np.zeros(len(self._record_in), bool)
        wanted[self._slot_of[records[self._slot_of[records] >= 0]]] = True
        slots = np.flatnonzero(~wanted)
        slots = slots[np.argsort(self._record_in[slots] >= 0, kind="stable")]  # empty ones first
        if len(slots) < len(missing):
            self._add_slots(len(missing))
            return self._load(records)
        slots = slots[: len(missing)]
        replaced = self._record_in[slots]
        self._slot_of[replaced[replaced >= 0]] = -1
        self._slot_of[missing], self._record_in[slots] = slots, missing
        with damage_named(self._folder):
            raw = self._source.__getitems__(missing.tolist())
            for slot, record in zip(slots, raw, strict=True):
                self._decode(slot, record)
        return None

    def _decode(self, slot: int, record: bytes) -> None:
        row_bytes = sum(t.itemsize * int(np.prod(s)) for t, s in self._arrays.values())
        count, start = len(record) // row_bytes, 0
        for name, (dtype, shape) in self._arrays.items():
            size = count * int(np.prod(shape))
            values = np.frombuffer(record, dtype, size, start)
            self._held[name][slot, :count] = values.reshape(count, *shape)
            start += size * dtype.itemsize

    def _add_slots(self, count: int) -> None:
        self._record_in = np.append(self._record_in, np.full(count, -1))
        for name, held in self._held.items():
            more = np.empty((len(held) + count, *held.shape[1:]), held.dtype)
            more[: len(held)] = held
            self._held[name] = more


def _facts(folder: Path) -> dict:
    file = folder / FACTS
    facts = {"version": "an older one"}
    if file.is_file():
        facts = read_json(file, ("version",), check=False)
    if facts["version"] != VERSION:
        raise UserError(
            f"{folder} was written in another format (version {facts['version']}, this is "
            f"{VERSION}): delete the folder and prepare it anew with `ldlm data`."
        )
    return read_json(file, ("version", "arrays", "rows_per_record", "shards"))
