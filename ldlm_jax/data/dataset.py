"""Prepare a corpus for training: text dataset, tokenizer, packed windows, statistics.

Everything lands in ``<root>/<name>/`` and is built once: ``text/`` (a TFDS dataset of documents),
``tokenizer-<vocab>.json`` (a BPE of the training split) and ``packed-<packing>-<fingerprint>/`` (a
TFDS dataset of token windows). All datasets are array_record files, so TensorFlow is not needed.
"""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import track

from ldlm_jax.data.corpora import REGISTRY, SPLITS
from ldlm_jax.data.packing import pack_rows, tokenised
from ldlm_jax.data.sources import load_documents, parts_of
from ldlm_jax.data.special_ids import PAD, SPECIAL_TOKENS
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model
from ldlm_jax.validate import Count, local_path

# How often a log is told of rows that take long.
_SECONDS_A_LINE = 30
_SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into windows.

    Attributes:
      source: a corpus name, a path or ``tfds:NAME``, or several joined by a plus (see
        ``sources.load_documents``).
      root: folder that holds prepared corpora.
      text_field: field of JSONL, Parquet or TFDS records that holds the text.
      vocab_size: tokens of the BPE, special tokens and the 256 bytes included.
      tokenizer: a pretrained model (named, folder or GGUF file, see ``pretrained.zoo``) whose
        byte-level BPE is used instead of one trained on the corpus; ``vocab_size`` then says
        nothing.
      window: tokens in one row of a batch.
      packing: ``pack`` puts several documents into a row, kept apart by segment numbers; ``pad``
        gives each document a row of its own.
      pad_to_multiple: a document's length (end token included) is rounded up to a multiple of this
        with padding that belongs to the document and is modelled. 1: the length is drawn before the
        text is generated; ``window``: the model alone decides where the text ends.
      shuffle_seed: order of the training windows.
    """

    source: str = "web"
    root: str = "corpora"
    text_field: str = "text"
    vocab_size: Annotated[int, f"[{256 + len(SPECIAL_TOKENS)}, inf)"] = 4096
    tokenizer: str = ""
    window: Annotated[int, "[2, inf)"] = 64
    packing: Literal["pack", "pad"] = "pack"
    pad_to_multiple: Count = 1
    shuffle_seed: int = 0

    @property
    def folder(self) -> Path:
        """Where this source's datasets live; files that changed are another source."""
        root, parts = local_path(self.root), parts_of(self.source)
        if all(part in REGISTRY for part in parts):
            return root / self.source
        paths = [Path(part.removeprefix("tfds:")) for part in parts]
        origins = [_identity(p, part) for p, part in zip(paths, parts, strict=True)]
        name = re.sub(r"\W+", "_", "+".join(path.stem for path in paths))
        return root / f"{name}-{_digest([*origins, self.text_field])}"


def _identity(path: Path, source: str) -> list:
    """What tells a source from others: where its files lie, their sizes and times of change."""
    if "://" in source or not path.expanduser().exists():
        return [source]
    path = path.expanduser()
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    stats = [(str(file.relative_to(path.parent)), file.stat()) for file in files]
    return [str(path.resolve()), *((name, s.st_size, s.st_mtime_ns) for name, s in stats)]


@dataclass(frozen=True)
class Prepared:
    """A corpus that is ready to train on.

    Attributes:
      tokenizer: the tokenizer of the training split.
      text: folder of the TFDS dataset of documents.
      packed: folder of the TFDS dataset of token windows.
      stats: documents, windows, tokens and bytes per token by split, and ``lengths``: how many
        training documents have each (rounded) length, from 0 to the window.
      source: what it was made of, as the config names it.
    """

    tokenizer: Tokenizer
    text: Path
    packed: Path
    stats: dict
    source: str = ""


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]


def _watched(rows: Iterable, name: str) -> Iterator:
    """The same rows, counted while they go by: on a terminal all the time, in a log by lines."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(rows, name, console=console, transient=True)
        return
    last_line = time.monotonic()
    for count, row in enumerate(rows):
        if time.monotonic() - last_line >= _SECONDS_A_LINE:
            print(f"{name}: {count:,} rows", file=sys.stderr, flush=True)
            last_line = time.monotonic()
        yield row


def write_dataset(folder: Path, features: dict, examples: dict[str, Iterable]) -> None:
    """Write a dataset that TFDS can read, whole or not at all, row by row.

    TFDS's own builders hold a split in memory, and beyond a gigabyte ask for TensorFlow.

    Raises:
      UserError: a split has no rows.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"writing {folder}", flush=True)
    features = tfds.features.FeaturesDict(features)
    splits = []
    for split, rows in examples.items():
        records = map(features.serialize_example, _watched(rows, f"{folder.name} {split}"))
        lengths, size = _write_shards(partial, split, records)
        if not lengths:
            raise UserError(f"the {split} split of {folder} has no rows: give it more text.")
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    tfds.folder_dataset.write_metadata(
        data_dir=partial, features=features, split_infos=splits, check_data=False,
        disable_shuffling=True,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_shards(folder: Path, split: str, records: Iterator[bytes]) -> tuple[list[int], int]:
    """Write records, in order, to files of bounded size: records of each, and bytes of all."""
    lengths, total, room, writer = [], 0, 0, None
    for record in records:
        if writer is None or room < len(record):
            if writer:
                writer.close()
            # One record a group: rows are read at random.
            writer = ArrayRecordWriter(str(folder / f"{split}-{len(lengths)}"), "group_size:1")
            lengths.append(0)
            room = _SHARD_BYTES
        writer.write(record)
        lengths[-1] += 1
        room -= len(record)
        total += len(record)
    if writer:
        writer.close()
    for i in range(len(lengths)):
        name = f"dataset-{split}.array_record-{i:05d}-of-{len(lengths):05d}"
        (folder / f"{split}-{i}").rename(folder / name)
    return lengths, total


def write_features(folder: Path, shape: tuple[int, int], rows: Iterable[dict]) -> None:
    """Write ``features`` of every training row, given as the bits of bf16, which TFDS knows not."""
    # As bytes: numbers one by one take four times as long to read.
    encoding = tfds.features.Encoding.BYTES
    kind = tfds.features.Tensor(shape=shape, dtype=np.uint16, encoding=encoding)
    write_dataset(folder, {"features": kind}, {"train": rows})


def read_split(folder: Path, split: str):
    """Random-access examples of one split of a prepared dataset."""
    return tfds.builder_from_directory(str(folder)).as_data_source(split)


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """The documents of one split of a prepared text dataset."""
    source = read_split(folder, split)
    for i in range(len(source)):
        yield source[i]["text"].decode("utf-8")


def _segment_lengths(segments: np.ndarray) -> np.ndarray:
    return np.bincount(segments[segments > 0])[1:]


def _statistics(config: DataConfig, text: Path, packed: Path) -> dict:
    stats: dict = {}
    lengths = np.zeros(config.window + 1, np.int64)
    for split in SPLITS:
        size = [len(t.encode()) for t in read_texts(text, split)]
        rows = read_split(packed, split)
        tokens = 0
        for i in range(len(rows)):
            tokens += int((rows[i]["tokens"] != PAD).sum())
            if split == "train":
                np.add.at(lengths, _segment_lengths(rows[i]["segments"]), 1)
        stats[split] = {
            "documents": len(size),
            "windows": len(rows),
            "tokens": tokens,
            "bytes_per_token": sum(size) / max(1, tokens - len(size)),
            "filled": tokens / (len(rows) * config.window),
        }
    stats["lengths"] = lengths.tolist()
    return stats


def prepare(config: DataConfig) -> Prepared:
    """Build what is missing of a corpus and return it; with everything in place, just read it.

    Raises:
      UserError: the source cannot be read, or the folder cannot be written.
    """
    try:
        return _prepare(config)
    except OSError as error:
        raise UserError(
            f"could not write {config.folder}: {error.strerror or error}. Free some space or "
            "choose another folder with data.root."
        ) from error


def _adopted(name: str) -> Tokenizer:
    return Tokenizer.adopt(PretrainedTokenizer.load(find_model(name)).backend, name)


def vocab_size(config: DataConfig) -> int:
    """Tokens that a config asks for; no corpus is read."""
    return _adopted(config.tokenizer).vocab_size if config.tokenizer else config.vocab_size


def _tokenizer(config: DataConfig, text: Path) -> Tokenizer:
    """The BPE of the training split, trained once; or a pretrained model's."""
    if config.tokenizer:
        return _adopted(config.tokenizer)
    file = config.folder / f"tokenizer-{config.vocab_size}.json"
    if not file.exists():
        Tokenizer.train(read_texts(text, "train"), config.vocab_size).save(file)
    return Tokenizer.load(file)


def _prepare(config: DataConfig) -> Prepared:
    folder = config.folder
    text = folder / "text"
    if not text.is_dir():
        downloads = local_path(config.root) / "downloads"
        documents = load_documents(config.source, downloads=downloads, text_field=config.text_field)
        folder.mkdir(parents=True, exist_ok=True)
        examples = {split: ({"text": t} for t in documents[split]) for split in SPLITS}
        write_dataset(text, {"text": tfds.features.Text()}, examples)

    tokenizer = _tokenizer(config, text)

    layout = [config.window, config.packing, config.pad_to_multiple, tokenizer.fingerprint]
    packed = folder / f"packed-{config.packing}{config.window}-{_digest(layout)}"
    stats_file = packed / "stats.json"
    if not stats_file.exists():
        row = tfds.features.Tensor(shape=(config.window,), dtype=np.int32)
        examples = {
            split: pack_rows(tokenised(read_texts(text, split), tokenizer), config)
            for split in SPLITS
        }
        write_dataset(packed, {"tokens": row, "segments": row}, examples)
        stats_file.write_text(json.dumps(_statistics(config, text, packed)))
    return Prepared(tokenizer, text, packed, json.loads(stats_file.read_text()), config.source)
