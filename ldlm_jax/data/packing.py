"""Tokenised documents into rows of a fixed length, all tokens of many documents at once.

Shape letters: D documents, T their tokens one after another, P pieces of documents, R rows,
L tokens of a row.
"""

import numpy as np

from ldlm_jax.data.special_ids import EOS, PAD

# Rows that are filled side by side. When a piece fits into none, all of them are done.
_BINS = 64


def pack(ids_T: np.ndarray, lengths_D: np.ndarray, config) -> dict[str, np.ndarray]:
    """Cut, pad and pack documents into rows of ``config.window`` tokens.

    A document longer than the window is cut into pieces; only the last carries the end token.

    Args:
      ids_T: tokens of all documents, without end tokens.
      lengths_D: tokens of each.
      config: a ``DataConfig``.

    Returns:
      ``tokens`` and ``segments`` (0 is empty space, documents count from 1), int32 (R, L).
    """
    window, multiple = config.window, config.pad_to_multiple
    stream_T = np.full(len(ids_T) + len(lengths_D), EOS, np.int32)
    stream_T[np.arange(len(ids_T)) + np.repeat(np.arange(len(lengths_D)), lengths_D)] = ids_T
    whole_D = lengths_D + 1
    pieces_D = -(-whole_D // window)
    document_P = np.repeat(np.arange(len(whole_D)), pieces_D)
    number_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    size_P = np.minimum(window, whole_D[document_P] - number_P * window)
    padded_P = -(-size_P // multiple) * multiple
    if config.packing == "pad":
        row_P, offset_P, segment_P = np.arange(len(size_P)), 0 * size_P, 0 * size_P + 1
    else:
        row_P, offset_P, segment_P = _first_fit(padded_P, window)
    rows = int(row_P.max(initial=-1)) + 1
    tokens_RxL = np.full((rows, window), PAD, np.int32)
    segments_RxL = np.zeros((rows, window), np.int32)
    start_P = row_P * window + offset_P
    tokens_RxL.reshape(-1)[_places(start_P, size_P)] = stream_T
    segments_RxL.reshape(-1)[_places(start_P, padded_P)] = np.repeat(segment_P, padded_P)
    return {"tokens": tokens_RxL, "segments": segments_RxL}


def _places(start_P: np.ndarray, size_P: np.ndarray) -> np.ndarray:
    """``start``, ``start + 1``, ... of every piece, one piece after another."""
    before_P = np.cumsum(size_P) - size_P
    return np.repeat(start_P - before_P, size_P) + np.arange(size_P.sum())


def _first_fit(size_P: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place in it and number there of every piece: the first open row that has room."""
    placed, done, free, count = [], 0, [], []
    for size in size_P.tolist():
        row = next((i for i, room in enumerate(free) if room >= size), len(free))
        if row == len(free):
            if row == _BINS:
                done, free, count, row = done + _BINS, [], [], 0
            free.append(window)
            count.append(0)
        count[row] += 1
        placed.append((done + row, window - free[row], count[row]))
        free[row] -= size
    return tuple(np.array(placed, np.int64).reshape(-1, 3).T)
