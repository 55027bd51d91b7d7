"""Vectorised work on `Csr` lists (one list of catalogue positions per row)."""

from __future__ import annotations

import numpy as np

from tfcsmf.data.lists import distinct_sorted
from tfcsmf.data.prepared import Csr


def row_numbers(lists: Csr) -> np.ndarray:
    """Returns the row each item of `lists.items` belongs to, int64 [n].

    Example:
      >>> row_numbers(Csr(np.array([0, 2, 2, 3]), np.array([5, 6, 7]))).tolist()
      [0, 0, 2]
    """
    return np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))


def from_lengths(lengths: np.ndarray, items: np.ndarray) -> Csr:
    """Returns the lists with these lengths; `items` are given row after row."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Csr(offsets.astype(np.int64), items.astype(np.int32))


def from_sorted_rows(rows: np.ndarray, items: np.ndarray, num_rows: int) -> Csr:
    """Returns lists from (row, item) pairs that are sorted by row."""
    return from_lengths(np.bincount(rows, minlength=num_rows), items)


def take_ranges(items: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Csr:
    """Returns one list per range, `items[starts[r]:ends[r]]`.

    Example:
      >>> part = take_ranges(np.array([7, 8, 9]), np.array([1, 0]), np.array([3, 1]))
      >>> part.row(0).tolist(), part.row(1).tolist()
      ([8, 9], [7])
    """
    lengths = np.maximum(ends - starts, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    picked = items[np.repeat(starts, lengths) + within]
    return Csr(offsets.astype(np.int64), picked.astype(np.int32))


def take_rows(lists: Csr, rows: np.ndarray) -> Csr:
    """Returns the lists of these rows, in this order.

    Example:
      >>> lists = Csr(np.array([0, 2, 3]), np.array([5, 6, 7]))
      >>> take_rows(lists, np.array([1, 0])).items.tolist()
      [7, 5, 6]
    """
    return take_ranges(lists.items, lists.offsets[rows], lists.offsets[rows + 1])


def contains(lists: Csr, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns whether `items[i]` is in row `rows[i]` of the lists; any shape.

    Args:
      lists: one list per row; order and repetitions do not matter.
      rows: row numbers, broadcastable to `items`.
      items: catalogue positions; negative ones are in no list.

    Example:
      >>> lists = Csr(np.array([0, 2, 3]), np.array([5, 6, 7]))
      >>> contains(lists, np.array([0, 1, 1]), np.array([6, 6, 7])).tolist()
      [True, False, True]
    """
    width = int(max(lists.items.max(initial=-1), items.max(initial=-1))) + 1
    keys = distinct_sorted(row_numbers(lists) * width + lists.items)
    if not len(keys):
        return np.zeros(items.shape, bool)
    wanted = rows * width + items.astype(np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[place] == wanted) & (items >= 0)
