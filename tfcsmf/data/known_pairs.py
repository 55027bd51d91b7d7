"""Known positives among the candidates of a batch: no negatives of their users."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import flat_ranges
from tfcsmf.data.lists import pair_keys
from tfcsmf.data.prepared import Csr

_SIEVE = 1 << 16


def known_lists(known: Csr) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the offsets and items of lists as tensors, for `known_pairs`."""
    items = known.items if len(known.items) else np.zeros(1, np.int32)
    return tf.constant(known.offsets), tf.constant(items)


def known_pairs(
    offsets: tf.Tensor, lists: tf.Tensor, users: tf.Tensor, items: tf.Tensor
) -> tf.Tensor:
    """Finds the columns that may not be negatives of a row.

    Args:
      offsets: int64 [U + 1], where each user's known positives begin.
      lists: int32, the known positives, catalogue positions.
      users: int [rows].
      items: int32 [columns]; may repeat.

    Returns:
      int32 [n, 2], every (row, column) whose item is a known positive of the row's
      user, sorted by row. Cost: the known positives of the batch's users, not
      rows x columns comparisons.
    """
    starts = tf.gather(offsets, users)
    owners, slots = flat_ranges(starts, tf.gather(offsets, users + 1) - starts)
    wanted = tf.gather(lists, slots)
    # Most are in no column: sieve them out by their last bits before searching.
    drawn = tf.scatter_nd(
        (items % _SIEVE)[:, tf.newaxis], tf.ones_like(items, tf.bool), [_SIEVE]
    )
    maybe = tf.where(tf.gather(drawn, wanted % _SIEVE))[:, 0]
    owners, wanted = tf.gather(owners, maybe), tf.gather(wanted, maybe)
    order = tf.argsort(items)
    ordered = tf.gather(items, order)
    first = tf.searchsorted(ordered, wanted, side="left", out_type=tf.int64)
    last = tf.searchsorted(ordered, wanted, side="right", out_type=tf.int64)
    # A candidate may fill several columns: one (row, column) pair for each.
    hits, columns = flat_ranges(first, last - first)
    rows = tf.cast(tf.gather(owners, hits), tf.int32)
    return tf.stack([rows, tf.gather(order, columns)], axis=1)


def known_keys(known: Csr, num_items: int) -> np.ndarray:
    """Returns `list * num_items + item` of all lists, int64, with a last one."""
    return np.append(pair_keys(known, num_items), np.iinfo(np.int64).max)


def joined_pairs(pairs: tf.Tensor, owners: tf.Tensor, apart: tf.Tensor) -> tf.Tensor:
    """Adds (positive, column) pairs to (row, column) pairs, both sorted.

    Args:
      pairs: int32 [m, 2].
      owners: int64 [n], the row of every positive.
      apart: int32 [k, 2].
    """
    rows = tf.cast(tf.gather(owners, apart[:, 0]), tf.int32)
    both = tf.concat([pairs, tf.stack([rows, apart[:, 1]], axis=1)], axis=0)
    return tf.gather(both, tf.argsort(both[:, 0], stable=True))
