"""Batches by step: the position in the data is a function of the step, for any number of hosts."""

import atexit
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import grain
import numpy as np

from ldlm_jax.data.dataset import DataConfig, Prepared
from ldlm_jax.data.order import streamed, whole
from ldlm_jax.data.rows import Arrays, Rows

# Batches that are made ready, on the device, while a step runs.
_AHEAD = 4
# Seconds to wait for the batch that is being made, at the end.
_PATIENCE = 10


def train_batches(
    prepared: Prepared,
    config: DataConfig,
    batch_size: int,
    start_step: int = 0,
    own_rows: np.ndarray | None = None,
    add: Callable[[dict], dict] | None = None,
    cache: Path | None = None,
    put: Callable[[dict], dict] = lambda batch: batch,
) -> Iterator[dict]:
    """Endless batches of this process's rows, from a step on, made in a thread of their own.

    Args:
      prepared: the corpus.
      config: its config.
      batch_size: rows over all processes.
      start_step: the first step to yield the batch of.
      own_rows: which rows of each batch are wanted, see ``sharding.own_rows``; None for all.
      add: maps each row to one with more arrays.
      cache: folder whose row i is to be joined to training row i.
      put: moves a batch to the devices; called in that thread, so that no step waits for it.

    Yields:
      ``tokens`` and ``segments``, int32 (own rows, window), and what ``cache`` and ``add`` give.
      Every epoch has an order of its own (``order``), and the whole batch of a step does not depend
      on how many processes there are.
    """
    own_rows = np.arange(batch_size) if own_rows is None else own_rows
    batches = _Batches(prepared.packed, config, batch_size, own_rows, cache, add)
    return _ahead(grain.MapDataset.source(batches)[start_step:].map(put))


def _ahead(batches: grain.MapDataset) -> Iterator[dict]:
    """The batches from the first on, made by a thread that is a few batches ahead.

    Taking one costs the loop some microseconds; grain's own thread costs it a third of a
    millisecond.
    """
    ready, room, stop = SimpleQueue(), SimpleQueue(), Event()

    def make() -> None:
        try:
            for step in count():
                room.get()
                if stop.is_set():
                    return
                ready.put((batches[step], None))
        except BaseException as error:  # the loop is told of it, whatever it is
            ready.put((None, error))

    for _ in range(_AHEAD):
        room.put(None)
    thread = Thread(target=make, daemon=True)

    def end() -> None:
        """A thread that still moved a batch when Python ends would abort the program."""
        stop.set()
        room.put(None)
        thread.join(_PATIENCE)

    atexit.register(end)  # a loop that is left by ``sys.exit`` does not close its iterators
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            room.put(None)
            yield batch
    finally:
        end()
        atexit.unregister(end)


class _Batches:
    """The batch of every step, read at once."""

    def __init__(self, packed: Path, config, batch_size: int, own_rows, cache, add):
        self._sources = [Rows(folder, "train") for folder in (packed, cache) if folder is not None]
        self._order = whole if self._sources[0].fits_in_memory else streamed
        self._seed, self._batch_size, self._own = config.shuffle_seed, batch_size, own_rows
        self._add = add

    def __len__(self) -> int:
        return 2**40  # of steps there is no end

    def __getitem__(self, step: int) -> Arrays:
        rows = self._order(step, self._own, self._batch_size, self._sources[0], self._seed)
        batch = {}
        for source in self._sources:
            batch |= source.take(rows)
        return _with_more(batch, self._add) if self._add else batch


def _with_more(batch: Arrays, add: Callable[[dict], dict]) -> Arrays:
    places = range(len(batch["tokens"]))
    rows = [add({name: x[i] for name, x in batch.items()}) for i in places]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def eval_batches(
    prepared: Prepared, split: str, batch_size: int, most: int, own_rows: np.ndarray | None = None
) -> list[dict]:
    """The first ``most`` batches of a split (fewer if it is short), or some rows of each.

    The last batch is filled up with empty rows, whose segment numbers are all 0.
    """
    own_rows = np.arange(batch_size) if own_rows is None else own_rows
    source = Rows(prepared.packed, split)
    rows = source.take(np.arange(min(len(source), most * batch_size)))
    missing = -len(rows["tokens"]) % batch_size
    rows = {k: np.pad(x, ((0, missing), (0, 0))) for k, x in rows.items()}
    return [
        {name: x[start + own_rows] for name, x in rows.items()}
        for start in range(0, len(rows["tokens"]), batch_size)
    ]
