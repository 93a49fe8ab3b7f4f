"""Batches by step: the position in the data is a function of the step, for any number of hosts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np

from ldlm_jax.data.dataset import DataConfig, Prepared, read_split


def train_batches(
    prepared: Prepared,
    config: DataConfig,
    batch_size: int,
    start_step: int = 0,
    own_rows: np.ndarray | None = None,
    add: Callable[[dict], dict] | None = None,
    cache: Path | None = None,
) -> Iterator[dict]:
    """Endless batches of this process's rows, from a step on.

    Args:
      prepared: the corpus.
      config: its config.
      batch_size: rows over all processes.
      start_step: the first step to yield the batch of.
      own_rows: which rows of each batch are wanted, see ``sharding.own_rows``; None for all.
      add: maps each row to one with more arrays.
      cache: dataset whose row i is to be joined to training row i, before ``add``.

    Yields:
      ``tokens`` and ``segments``, int32 (own rows, window). Every epoch has an order of its own,
      and the whole batch of a step does not depend on how many processes there are.
    """
    own_rows = np.arange(batch_size) if own_rows is None else own_rows
    source = read_split(prepared.packed, "train")
    if cache is not None:
        source = _Joined(source, read_split(cache, "train"))
    rows = grain.MapDataset.source(source).seed(config.shuffle_seed).shuffle().repeat()
    rows = grain.MapDataset.source(_Share(rows[start_step * batch_size :], batch_size, own_rows))
    if add is not None:
        rows = rows.map(add)
    batches = rows.batch(len(own_rows))
    # A few batches ahead are enough: decoding a batch is much faster than a step.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


class _Share:
    """Of every batch of an endless dataset, some rows."""

    def __init__(self, rows, batch_size: int, own_rows: np.ndarray):
        self._rows, self._batch_size, self._own = rows, batch_size, own_rows

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size * len(self._own)

    def __getitem__(self, index: int) -> dict:
        batch, place = divmod(index, len(self._own))
        return self._rows[batch * self._batch_size + int(self._own[place])]


class _Joined:
    """Two datasets of equal length as one."""

    def __init__(self, one, other):
        self._both = one, other

    def __len__(self) -> int:
        return len(self._both[0])

    def __getitem__(self, index) -> dict:
        one, other = (source[index] for source in self._both)
        return one | other


def eval_batches(
    prepared: Prepared, split: str, batch_size: int, count: int, own_rows: np.ndarray | None = None
) -> list[dict]:
    """The first ``count`` batches of a split (fewer if it is short), or some rows of each.

    The last batch is filled up with empty rows, whose segment numbers are all 0.
    """
    own_rows = np.arange(batch_size) if own_rows is None else own_rows
    source = read_split(prepared.packed, split)
    rows = [source[i] for i in range(min(len(source), count * batch_size))]
    empty = {name: np.zeros_like(value) for name, value in rows[0].items()}
    rows += [empty] * (-len(rows) % batch_size)
    return [
        {name: np.stack([rows[start + row][name] for row in own_rows]) for name in empty}
        for start in range(0, len(rows), batch_size)
    ]  # fmt: skip
