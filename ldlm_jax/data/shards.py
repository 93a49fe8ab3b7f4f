"""A split is tokenised and packed shard by shard, on all cores.

A shard holds the documents of some records of text. Where shards begin follows from the text alone,
so that any number of processes makes the same files. A finished shard has a file of facts beside
it; what was killed half-way has none, and is made anew.
"""

import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ldlm_jax.data.packing import pack
from ldlm_jax.data.rows import ShardWriter, shard_name
from ldlm_jax.data.special_ids import PAD
from ldlm_jax.data.texts import open_texts
from ldlm_jax.data.tokenizer import Tokenizer

# Records of about a megabyte in a shard: enough for a worker, and not too many files.
_RECORDS, _MOST_SHARDS = 16, 1024


@dataclass(frozen=True)
class Shard:
    """What one shard is made of, and where it goes.

    Attributes:
      text: folder of the documents.
      split: which of its splits.
      records: first record of text, and last plus one.
      path: the file to be written.
      config: a ``DataConfig``.
    """

    text: Path
    split: str
    records: tuple[int, int]
    path: Path
    config: object

    @property
    def facts(self) -> Path:
        """The file that tells that the shard is finished."""
        return self.path.with_suffix(".json")

    def make(self, tokenizer: Tokenizer) -> dict:
        """Write the shard if it is not there yet.

        Returns:
          ``rows``, ``documents``, ``bytes`` and ``tokens`` (all that are no padding), and
          ``lengths``: how many documents have each (rounded) length, from 0 to the window.
        """
        if self.facts.exists():
            return json.loads(self.facts.read_text())
        encoded, size = [], 0
        for texts in open_texts(self.text, self.split).read(*self.records):
            encoded.append(tokenizer.encode_flat(texts))
            size += sum(len(text.encode()) for text in texts)
        ids, lengths = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
        rows = pack(ids, lengths, self.config)
        # Some engines make a shard twice at once, and take what is finished first.
        partial = self.path.with_suffix(f".{uuid.uuid4().hex}.partial")
        writer = ShardWriter(partial, stored(rows, tokenizer.vocab_size))
        writer.add(stored(rows, tokenizer.vocab_size))
        writer.close()
        partial.replace(self.path)
        facts = {"rows": writer.rows, "documents": len(lengths), "bytes": size,
                 "tokens": int((rows["tokens"] != PAD).sum()),
                 "lengths": _document_lengths(rows["segments"]).tolist()}  # fmt: skip
        partial.write_text(json.dumps(facts))
        partial.replace(self.facts)
        return facts


def _document_lengths(segments_RxL: np.ndarray) -> np.ndarray:
    """How many documents have 0, 1, ... L tokens; documents stand in rows one after another."""
    R, L = segments_RxL.shape
    numbers = np.arange(R)[:, None] * (L + 1) + segments_RxL
    sizes = np.bincount(numbers[segments_RxL > 0])
    return np.bincount(sizes[sizes > 0], minlength=L + 1)


def stored(rows: dict, vocab_size: int) -> dict:
    """Rows in the smallest types that hold them."""
    token, number = map(np.min_scalar_type, (vocab_size - 1, rows["segments"].shape[1]))
    return {"tokens": rows["tokens"].astype(token), "segments": rows["segments"].astype(number)}


def shards_of(text: Path, split: str, folder: Path, config) -> list[Shard]:
    """The shards of a split."""
    records = len(open_texts(text, split))
    each = max(_RECORDS, -(-records // _MOST_SHARDS))
    starts = range(0, records, each)
    return [
        Shard(text, split, (start, min(start + each, records)),
              folder / shard_name(split, number, len(starts)), config)
        for number, start in enumerate(starts)
    ]  # fmt: skip


def make_shards(shards: list[Shard], tokenizer: Tokenizer, workers: int) -> Iterator[dict]:
    """Make shards in some processes; their facts, in the order in which they are finished."""
    missing = [shard for shard in shards if not shard.facts.exists()]
    yield from (s.make(tokenizer) for s in shards if s not in missing)
    if min(workers, len(missing)) > 1:
        pool = ProcessPoolExecutor(
            min(workers, len(missing)), get_context("spawn"), _start, (tokenizer.to_json(),)
        )
        try:
            for made in as_completed([pool.submit(_make, shard) for shard in missing]):
                yield made.result()
            return
        except BrokenProcessPool:  # as in a script that begins anew in every process
            missing = [shard for shard in missing if not shard.facts.exists()]
        finally:
            pool.shutdown(cancel_futures=True)
    yield from (shard.make(tokenizer) for shard in missing)


_tokenizer: Tokenizer | None = None


def _start(tokenizer: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is enough
    _tokenizer = Tokenizer.from_json(tokenizer)


def _make(shard: Shard) -> dict:
    return shard.make(_tokenizer)
