"""Batches by step: the position in the data is a function of the step, for any number of hosts."""

from collections.abc import Iterator

import grain
import jax

from ldlm_jax.data.build import DataConfig, Prepared, read_split
from ldlm_jax.errors import UserError


def train_batches(
    prepared: Prepared, config: DataConfig, batch_size: int, start_step: int = 0
) -> Iterator[dict]:
    """Endless batches of this host's rows, from a step on.

    Args:
      prepared: the corpus.
      config: its config.
      batch_size: rows over all hosts; must divide by their number.
      start_step: the first step to yield the batch of.

    Yields:
      ``tokens`` and ``segments``, int32 (batch_size / hosts, window). Every epoch has an order of
      its own, and the union over hosts does not depend on how many there are.
    """
    hosts, host = jax.process_count(), jax.process_index()
    if batch_size % hosts:
        raise UserError(f"train.batch_size = {batch_size} must divide by the {hosts} hosts.")
    source = read_split(prepared.packed, "train")
    rows = grain.MapDataset.source(source).seed(config.shuffle_seed).shuffle().repeat()
    rows = rows[start_step * batch_size :][host::hosts]
    batches = rows.batch(batch_size // hosts)
    # A few batches ahead are enough: decoding a batch is much faster than a step.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(batches.to_iter_dataset(options))


def eval_batches(prepared: Prepared, split: str, batch_size: int, count: int) -> list[dict]:
    """The first ``count`` whole batches of a split (fewer if it is short), this host's rows."""
    hosts, host = jax.process_count(), jax.process_index()
    source = read_split(prepared.packed, split)
    count = min(count, len(source) // batch_size)
    if count < 1:
        raise UserError(
            f"the {split} split has {len(source)} windows, fewer than one batch of {batch_size}; "
            "lower train.batch_size or give it more text."
        )
    rows = grain.MapDataset.source(source)[: count * batch_size][host::hosts]
    return list(rows.batch(batch_size // hosts))
