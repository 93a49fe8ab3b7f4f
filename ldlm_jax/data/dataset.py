"""Prepare a corpus for training: text dataset, tokenizer, packed windows, statistics.

Everything lands in ``<root>/<name>/`` and is built once: ``text/`` (documents, see ``texts``),
``tokenizer-<vocab>.json`` (a BPE of the training split) and ``packed-<packing>-<fingerprint>/``
(windows of tokens, see ``rows``; made by ``shards``). All are array_record files.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from ldlm_jax.data.corpora import REGISTRY, SPLITS
from ldlm_jax.data.files import files_not_read, files_of
from ldlm_jax.data.progress import watched
from ldlm_jax.data.rows import VERSION, write_facts
from ldlm_jax.data.shards import Shard, make_shards, shards_of, stored
from ldlm_jax.data.sources import load_documents, weighted_parts
from ldlm_jax.data.special_ids import SPECIAL_TOKENS
from ldlm_jax.data.stamped import read_json, write_json
from ldlm_jax.data.texts import open_texts, write_texts
from ldlm_jax.data.tokenizer import Tokenizer
from ldlm_jax.errors import UserError
from ldlm_jax.pretrained.tokenizer import PretrainedTokenizer
from ldlm_jax.pretrained.zoo import find_model
from ldlm_jax.validate import Count, local_path

# Bytes of a corpus' folder that name its sources, and files that are not read which a log names.
_LONGEST_NAME, _MOST_NAMED = 120, 5
# Records of text, of about a megabyte, that a BPE is trained on at most; more teaches it nothing.
_RECORDS_FOR_BPE = 1024


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into windows.

    Attributes:
      source: a corpus name, a path or ``tfds:NAME``, or several joined by a plus, with weights or
        without (see ``sources.load_documents``).
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
    vocab_size: Annotated[int, f"[{256 + len(SPECIAL_TOKENS)}, 16777216]"] = 4096
    tokenizer: str = ""
    window: Annotated[int, "[2, 16777216]"] = 64
    packing: Literal["pack", "pad"] = "pack"
    pad_to_multiple: Count = 1
    shuffle_seed: int = 0

    @property
    def folder(self) -> Path:
        """Where this source's datasets live; files that changed are another source."""
        root, weighted = local_path(self.root), weighted_parts(self.source)
        parts = [part for _, part in weighted]
        if all(part in REGISTRY for part in parts):
            return root / self.source.replace("*", "x")
        paths = [Path(part.removeprefix("tfds:")) for part in parts]
        origins = [_identity(p, part) for p, part in zip(paths, parts, strict=True)]
        name = re.sub(r"\W+", "_", "+".join(path.stem for path in paths))
        name = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
        weights = [] if {weight for weight, _ in weighted} == {1.0} else [weighted]
        return root / f"{name}-{_digest([*origins, self.text_field, *weights])}"


def _identity(path: Path, source: str) -> list:
    """What tells a source from others: where its files lie, their sizes and times of change."""
    path = Path(os.path.expanduser(path))
    # An empty name, which is refused later, would be this folder and all that lies below it.
    if not source or "://" in source or not os.path.exists(path):
        return [source]
    if source.startswith("tfds:"):  # its files lie side by side
        files = sorted(f for f in path.iterdir() if f.is_file())
    else:
        files = files_of(path)
    return [str(path.resolve()), *filter(None, (_stamp(file, path.parent) for file in files))]


def _stamp(file: Path, folder: Path) -> tuple[str, int, int] | None:
    """A file's name, size and time of change; None if it is gone meanwhile."""
    try:
        found = file.stat()
    except OSError:  # reading it will tell
        return None
    return str(file.relative_to(folder)), found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Prepared:
    """A corpus that is ready to train on.

    Attributes:
      tokenizer: the tokenizer of the training split.
      text: folder of documents, see ``texts.read_texts``.
      packed: folder of windows, see ``rows.Rows``.
      stats: documents, windows, tokens and bytes per token by split, and ``lengths``: how many
        training documents have each (rounded) length, from 0 to the window.
      config: what it was made from.
    """

    tokenizer: Tokenizer
    text: Path
    packed: Path
    stats: dict
    config: DataConfig


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]


def _cores() -> int:
    """How many this process may use; Python 3.13 knows, before it the machine's are taken."""
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


Maker = Callable[[list[Shard], Tokenizer], Iterator[dict]]


def on_all_cores(shards: list[Shard], tokenizer: Tokenizer) -> Iterator[dict]:
    """Make shards on this machine; their facts, in the order in which they are finished."""
    return make_shards(shards, tokenizer, _cores())


def _pack(config: DataConfig, text: Path, tokenizer: Tokenizer, packed: Path, make: Maker) -> None:
    """Write the windows of all splits; shards that an earlier try finished are kept.

    Raises:
      UserError: a split has no rows.
    """
    partial = packed.with_name(packed.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    print(f"writing {packed}", flush=True)
    counts, stats = {}, {}
    for split in SPLITS:
        shards = shards_of(text, split, partial, config)
        for _ in watched(make(shards, tokenizer), f"{packed.name} {split}", "shards", len(shards)):
            pass
        facts = [json.loads(shard.facts.read_text()) for shard in shards]
        counts[split] = [fact["rows"] for fact in facts]
        if not sum(counts[split]):
            raise UserError(f"the {split} split of {packed} has no rows: give it more text.")
        stats[split] = _statistics(facts, config.window)
        if split == "train":
            lengths = np.sum([fact["lengths"] for fact in facts], axis=0)
    nothing = np.zeros((0, config.window), np.int32)
    example = stored({"tokens": nothing, "segments": nothing}, tokenizer.vocab_size)
    write_facts(partial, example, counts)
    write_json(partial / "stats.json", stats | {"lengths": lengths.tolist()})
    for half in partial.glob("*.partial"):  # of a worker that was killed
        half.unlink()
    shutil.rmtree(packed, ignore_errors=True)
    partial.rename(packed)
    for split in SPLITS:
        for shard in shards_of(text, split, packed, config):
            shard.facts.unlink()


def _statistics(facts: list[dict], window: int) -> dict:
    rows, documents, size, tokens = (
        sum(fact[name] for fact in facts) for name in ("rows", "documents", "bytes", "tokens")
    )
    return {
        "documents": documents,
        "windows": rows,
        "tokens": tokens,
        "bytes_per_token": size / max(1, tokens - documents),
        "filled": tokens / (rows * window),
    }


def prepare(config: DataConfig, make: Maker = on_all_cores) -> Prepared:
    """Build what is missing of a corpus and return it; with everything in place, just read it.

    Args:
      config: of the corpus.
      make: makes shards from a list of them and a tokenizer, and gives their facts.

    Raises:
      UserError: the source cannot be read, or the folder cannot be written.
    """
    try:
        return _prepare(config, make)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UserError(
            f"could not write {config.folder}: {error.strerror or error}. "
            + ("Free some space or choose" if full else "Choose")
            + " another folder with data.root."
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
        texts = open_texts(text, "train")
        records = texts.read(step=-(-len(texts) // _RECORDS_FOR_BPE))
        Tokenizer.train(chain.from_iterable(records), config.vocab_size).save(file)
        write_json(_stamp_of(file), {"file": _sum_of(file)})
    stamp = _stamp_of(file)  # older versions wrote none
    if stamp.exists() and read_json(stamp, ("file",))["file"] != _sum_of(file):
        raise UserError(
            f"{file} is damaged: delete {config.folder} and start the same command again, which "
            "makes it anew."
        )
    return Tokenizer.load(file)


def _sum_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _stamp_of(tokenizer: Path) -> Path:
    return tokenizer.with_suffix(".stamp.json")


def _prepare(config: DataConfig, make: Maker) -> Prepared:
    folder = config.folder
    text = folder / "text"
    if not text.is_dir():
        downloads = local_path(config.root) / "downloads"
        documents = load_documents(config.source, downloads=downloads, text_field=config.text_field)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {text}", flush=True)
        _tell_not_read(config.source)
        write_texts(text, {s: watched(documents[s], f"text {s}", "documents") for s in SPLITS})

    tokenizer = _tokenizer(config, text)

    layout = [VERSION, config.window, config.packing, config.pad_to_multiple, tokenizer.fingerprint]
    packed = folder / f"packed-{config.packing}{config.window}-{_digest(layout)}"
    stats_file = packed / "stats.json"
    if not stats_file.exists():
        _pack(config, text, tokenizer, packed, make)
    return Prepared(tokenizer, text, packed, _read_stats(stats_file), config)


def _tell_not_read(source: str) -> None:
    parts = [part for _, part in weighted_parts(source) if part not in REGISTRY]
    folders = [local_path(part) for part in parts if not part.startswith("tfds:")]
    left_out = [file for folder in folders for file in files_not_read(folder)]
    for file in left_out[:_MOST_NAMED]:
        print(f"not read: {file}")
    if len(left_out) > _MOST_NAMED:
        print(f"not read: {len(left_out) - _MOST_NAMED:,} more, see `ldlm data`", flush=True)


def _read_stats(file: Path) -> dict:
    stats = read_json(file, (*SPLITS, "lengths"))
    lengths = stats["lengths"]
    if isinstance(lengths, list) and all(isinstance(n, int) for n in lengths):
        return stats
    raise UserError(f"{file} is damaged: delete {file.parent} and start the same command again.")
