"""Tokenised documents into rows of a fixed length."""

from collections.abc import Iterable, Iterator
from itertools import islice

import grain
import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD
from ldlm_jax.data.tokenizer import Tokenizer


def pack_rows(documents: Iterable[list[int]], config) -> Iterator[dict]:
    """Cut, pad and pack tokenised documents into rows of ``config.window`` tokens.

    A document longer than the window is cut into pieces; only the last carries the end token.

    Yields:
      ``tokens`` and ``segments`` (0 is empty space, documents count from 1), both int32 (window,).
    """

    def pieces() -> Iterator[dict]:
        for ids in documents:
            ids = [*ids, EOS]
            for start in range(0, len(ids), config.window):
                piece = ids[start : start + config.window]
                piece += [PAD] * (-len(piece) % config.pad_to_multiple)
                yield {"tokens": np.asarray(piece, np.int32)}

    pieces_at_a_time = 1 if config.packing == "pad" else None
    packed = grain.experimental.FirstFitPackIterDataset(
        _Iterable(pieces),
        length_struct={"tokens": config.window},
        num_packing_bins=64,
        shuffle_bins=False,
        max_sequences_per_bin=pieces_at_a_time,
    )
    for row in packed:
        yield {"tokens": row["tokens"], "segments": row["tokens_segment_ids"].astype(np.int32)}


class _Iterable(grain.IterDataset):
    """A generator function as a grain dataset (packing is defined on those)."""

    def __init__(self, make):
        super().__init__()
        self._make = make

    def __iter__(self):
        return _Iterator(self._make())


class _Iterator(grain.DatasetIterator):
    def __init__(self, items):
        super().__init__()
        self._items = items

    def __next__(self):
        return next(self._items)

    def get_state(self) -> dict:
        return {}  # the packer records it; nothing resumes from it

    def set_state(self, state: dict) -> None:
        raise NotImplementedError("windows are written once, front to back")


def tokenised(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Token ids of each text, without an end token."""
    texts = iter(texts)
    while batch := list(islice(texts, 1024)):
        yield from tokenizer.encode(batch)
