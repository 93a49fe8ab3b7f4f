"""Batches by step: the position in the data is a function of the step, for any number of hosts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import jax
import numpy as np

from ldlm_jax.data.build import DataConfig, Prepared, read_split
from ldlm_jax.errors import UserError


def train_batches(
    prepared: Prepared,
    config: DataConfig,
    batch_size: int,
    start_step: int = 0,
    add: Callable[[dict], dict] | None = None,
    cache: Path | None = None,
) -> Iterator[dict]:
    """Endless batches of this host's rows, from a step on.

    Args:
      prepared: the corpus.
      config: its config.
      batch_size: rows over all hosts; must divide by their number.
      start_step: the first step to yield the batch of.
      add: maps each row to one with more arrays.
      cache: dataset whose row i is to be joined to training row i, before ``add``.

    Yields:
      ``tokens`` and ``segments``, int32 (batch_size / hosts, window). Every epoch has an order of
      its own, and the union over hosts does not depend on how many there are.
    """
    hosts, host = jax.process_count(), jax.process_index()
    if batch_size % hosts:
        raise UserError(f"train.batch_size = {batch_size} must divide by the {hosts} hosts.")
    source = read_split(prepared.packed, "train")
    if cache is not None:
        source = _Joined(source, read_split(cache, "train"))
    rows = grain.MapDataset.source(source).seed(config.shuffle_seed).shuffle().repeat()
    rows = rows[start_step * batch_size :][host::hosts]
    if add is not None:
        rows = rows.map(add)
    batches = rows.batch(batch_size // hosts)
    # A few batches ahead are enough: decoding a batch is much faster than a step.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


class _Joined:
    """Two datasets of equal length as one."""

    def __init__(self, one, other):
        self._both = one, other

    def __len__(self) -> int:
        return len(self._both[0])

    def __getitem__(self, index) -> dict:
        one, other = (source[index] for source in self._both)
        return one | other


def eval_batches(prepared: Prepared, split: str, batch_size: int, count: int) -> list[dict]:
    """The first ``count`` batches of a split (fewer if it is short), this host's rows.

    The last batch is filled up with empty rows, whose segment numbers are all 0.
    """
    hosts, host = jax.process_count(), jax.process_index()
    source = read_split(prepared.packed, split)
    rows = [source[i] for i in range(min(len(source), count * batch_size))]
    empty = {name: np.zeros_like(value) for name, value in rows[0].items()}
    rows += [empty] * (-len(rows) % batch_size)
    return [
        {name: np.stack([row[name] for row in rows[start + host : start + batch_size : hosts]])
         for name in empty}
        for start in range(0, len(rows), batch_size)
    ]  # fmt: skip
