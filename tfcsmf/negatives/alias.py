"""Alias tables: a draw from any discrete distribution in constant time."""

from __future__ import annotations

import numpy as np


def alias_tables(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Builds the alias table of every row of probabilities.

    A draw takes a uniform column k, and keeps it with probability `keep[k]` or takes
    `other[k]`. The rows are built together, a column at a time: the least likely one
    left is filled up by the most likely one.

    Args:
      probabilities: [rows, columns] >= 0, rows sum to 1; a row of zeros stays at
        its own columns.

    Returns:
      keep float32 and other int32, both [rows, columns].

    Example:
      >>> keep, other = alias_tables(np.array([[0.25, 0.75]]))
      >>> keep.tolist(), other.tolist()
      ([[0.5, 1.0]], [[1, 1]])

    References:
      Vose, A linear algorithm for generating random numbers with a given
      distribution, IEEE Trans. Softw. Eng. 17 (1991).
    """
    rows, columns = probabilities.shape
    left = probabilities.astype(np.float64) * columns
    keep = np.ones((rows, columns), np.float64)
    other = np.tile(np.arange(columns, dtype=np.int32), (rows, 1))
    open_ = np.ones((rows, columns), bool)
    every = np.arange(rows)
    for _ in range(columns - 1):
        low = np.where(open_, left, np.inf).argmin(axis=1)
        high = np.where(open_, left, -np.inf).argmax(axis=1)
        share = np.minimum(left[every, low], 1.0)
        keep[every, low], other[every, low] = share, high
        open_[every, low] = False
        left[every, high] -= 1.0 - share
    # What rounding left of the last one is 1.
    empty = probabilities.sum(axis=1) == 0
    keep[empty] = 1.0
    return keep.astype(np.float32), other
