"""In which order training reads rows: a function of the step alone, worked out for many at a time.

The permutation is grain's ``shuffle``, so that nothing moves for runs that began with it; grain
works it out one index after the other.

Shape letters: B rows of a batch, P positions.
"""

from functools import lru_cache

import numpy as np

# Positions whose places in a permutation are worked out at once.
_BLOCK = 2**16
_FEWEST_BITS = 16


def _round_keys(seed: int, rounds: int = 4) -> list[int]:
    """The first numbers of C++'s ``std::seed_seq{seed}``, of 32 bits, for four rounds."""
    words, size, ones = [0x8B8B8B8B] * rounds, 2, 2**32 - 1
    for k in range(2 * rounds):
        here, near, far = k % rounds, (k + 1) % rounds, (k + size) % rounds
        if k < rounds:
            mixed = words[here] ^ words[near] ^ words[here - 1]
            first = 1664525 * (mixed ^ (mixed >> 27)) & ones
            second = first + (1 if k == 0 else here + seed if k == 1 else here) & ones
            words[near], words[far] = words[near] + first & ones, words[far] + second & ones
        else:
            mixed = words[here] + words[near] + words[here - 1] & ones
            first = 1566083941 * (mixed ^ (mixed >> 27)) & ones
            second = first - here & ones
            words[near], words[far] = words[near] ^ first, words[far] ^ second
        words[here] = second
    return words


def _cipher(values_P: np.ndarray, keys: list[int], bits: int) -> np.ndarray:
    """A permutation of the numbers of ``bits`` bits: a Feistel network of Simon's rounds."""
    half = bits // 2
    ones = np.uint64(2**half - 1)

    def turned(x, by):
        return (x << np.uint64(by)) | (x >> np.uint64(half - by))

    def mixed(x):
        return (turned(x, 1) & turned(x, 8)) ^ turned(x, 2)

    left_P, right_P = values_P >> np.uint64(half), values_P & ones
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left_P = (left_P ^ mixed(right_P) ^ np.uint64(first)) & ones
        right_P = (right_P ^ mixed(left_P) ^ np.uint64(second)) & ones
    return (left_P << np.uint64(half)) | right_P


@lru_cache(maxsize=8)
def _block(number: int, size: int, seed: int) -> np.ndarray:
    """Where the positions of one block of ``0 ... size - 1`` go."""
    positions_P = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, size), dtype=np.uint64)
    if size < 2:
        return positions_P.astype(np.int64)
    bits = (size - 1).bit_length()
    bits, keys = max(bits + bits % 2, _FEWEST_BITS), _round_keys(seed)
    if bits == _FEWEST_BITS:
        # Few members among many numbers are a long walk apart: each round doubles the stride.
        table = _cipher(np.arange(2**bits, dtype=np.uint64), keys, bits)
        while (table[positions_P] >= size).any():
            table = np.where(table < size, table, table[table])
        return table[positions_P].astype(np.int64)
    values_P, outside = _cipher(positions_P, keys, bits), np.arange(len(positions_P))
    while len(outside := outside[values_P[outside] >= size]):
        values_P[outside] = _cipher(values_P[outside], keys, bits)
    return values_P.astype(np.int64)


def shuffled(positions_P: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Members of ``0 ... size - 1`` at some positions of an endless row of permutations of them.

    Every epoch, ``size`` positions, is a permutation of its own.
    """
    first = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])  # as grain makes of a seed
    epochs_P, within_P = np.divmod(positions_P, size)
    blocks_P = within_P // _BLOCK
    members_P = np.empty_like(positions_P)
    for epoch, number in set(zip(epochs_P.tolist(), blocks_P.tolist(), strict=True)):
        here = (epochs_P == epoch) & (blocks_P == number)
        members = _block(number, size, (first + epoch) % 2**32)
        members_P[here] = members[within_P[here] - number * _BLOCK]
    return members_P


def whole(step: int, own_B: np.ndarray, batch_size: int, rows, seed: int) -> np.ndarray:
    """Rows of a step, of a split that is in memory: every epoch is a permutation of all rows.

    Args:
      step: from 0 on.
      own_B: which rows of the batch are wanted.
      batch_size: rows of the whole batch.
      rows: the ``Rows`` of the split.
      seed: of the permutations.
    """
    return shuffled(step * batch_size + own_B, len(rows), seed)


def streamed(step: int, own_B: np.ndarray, batch_size: int, rows, seed: int) -> np.ndarray:
    """Rows of a step, of a split that is larger than memory; arguments as for ``whole``.

    Each place of a batch reads records one after another, front to back, in an order that is a
    permutation of all records in every epoch. So the rows of a batch come from as many records,
    anywhere in the split, and a process reads only the records of its own places. Places change
    records at different steps. Of a record that is shorter than others (the last of a shard) rows
    are read again; the first record of each place is entered on the way.
    """
    size = rows.per_record
    turn_B, place_B = np.divmod(step + own_B * size // batch_size, size)
    records_B = shuffled(turn_B * batch_size + own_B, rows.records, seed)
    first_B, count_B = rows.rows_of(records_B)
    return first_B + place_B % count_B
