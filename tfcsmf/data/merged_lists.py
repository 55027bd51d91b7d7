"""Several history lists of a query as one sequence, with TensorFlow ops only.

Training, evaluation and exported models merge lists by this one function, so that a
sequence cannot mean different things in two places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import MISSING, NUM_RESERVED, PADDING

Lists: TypeAlias = tf.Tensor | tf.RaggedTensor

_POWERS = 2 ** np.arange(63, dtype=np.int64)


@dataclass(frozen=True)
class MergedLists:
    """One sequence per query, left-padded with `PADDING`.

    Attributes:
      rows: int32 [n, width], width >= 1.
      events: int32 [n, width], rows of event types: `NUM_RESERVED` + the list's number.
      gaps: int32 [n, width], rows of the time since the entry before (see
        `tfcsmf.data.sequences`), `MISSING` for the first; `None` without times.
    """

    rows: tf.Tensor
    events: tf.Tensor
    gaps: tf.Tensor | None = None

    @property
    def mask(self) -> tf.Tensor:
        """Whether there is an entry, bool [n, width]."""
        return tf.not_equal(self.rows, PADDING)


def merge_lists(
    lists: Sequence[Lists], length: int, times: Sequence[Lists] | None = None
) -> MergedLists:
    """Merges lists into one sequence per query, and keeps its end.

    With times, entries are ordered by them; those of one time list by list. Without,
    everything is list by list: all of the first event, then all of the second. That
    needs nothing but the lists.

    Args:
      lists: at least one; of each event, int32 rows [n, any], padded anywhere, or
        ragged [n, <= any] without padding; oldest first.
      length: last entries that are kept, >= 1.
      times: int64 of the same shapes; larger is later.

    Example:
      >>> views, carts = tf.constant([[5, 6, 0]]), tf.constant([[7]])
      >>> merge_lists([views, carts], 2).rows.numpy().tolist()
      [[6, 7]]
      >>> days = [tf.constant([[1, 9, 0]], tf.int64), tf.constant([[2]], tf.int64)]
      >>> merged = merge_lists([views, carts], 3, days)
      >>> merged.rows.numpy().tolist(), merged.gaps.numpy().tolist()
      ([[5, 7, 6]], [[1, 4, 6]])
    """
    parts = [last_entries(part, length) for part in lists]
    rows = tf.concat(parts, axis=1)
    events = tf.concat(
        [
            tf.fill(tf.shape(part), NUM_RESERVED + number)
            for number, part in enumerate(parts)
        ],
        axis=1,
    )
    columns = [rows, events]
    if times is not None:
        columns.append(
            tf.concat([last_entries(part, length) for part in times], axis=1)
        )
        columns = _sorted(columns, columns[2])
    columns = _sorted(columns, tf.cast(tf.not_equal(columns[0], PADDING), tf.int32))
    present = tf.not_equal(columns[0], PADDING)
    if times is not None:
        columns[2] = _gaps(columns[2], present)
    counts = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
    width = tf.clip_by_value(tf.reduce_max(counts), 1, length)
    # Where all lists are of width 0 there is not even padding.
    columns = [tf.pad(part, [[0, 0], [1, 0]])[:, -width:] for part in columns]
    present = tf.not_equal(columns[0], PADDING)
    columns[1:] = [tf.where(present, part, PADDING) for part in columns[1:]]
    return MergedLists(*columns)


def last_entries(part: Lists, length: int) -> tf.Tensor:
    """Returns a padded tensor, of ragged lists with the last entries alone.

    One more than `length`, for the gap before the first of them.
    """
    if isinstance(part, tf.RaggedTensor):
        return part[:, -length - 1 :].to_tensor(PADDING)
    return part


def _sorted(columns: Sequence[tf.Tensor], keys: tf.Tensor) -> list[tf.Tensor]:
    """Sorts every row by ascending keys; equal ones keep their order."""
    order = tf.argsort(keys, axis=1, stable=True)
    return [tf.gather(part, order, axis=1, batch_dims=1) for part in columns]


def _gaps(times: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Returns the rows of gaps, as `tfcsmf.data.lists.time_gaps`, int32 [n, any].

    By comparison: logarithms of floats are wrong at powers of two.
    """
    gaps = tf.maximum(times[:, 1:] - times[:, :-1], 0)
    powers = tf.searchsorted(_POWERS, tf.reshape(gaps + 1, [-1]), side="right") - 1
    rows = tf.reshape(powers, tf.shape(gaps)) + NUM_RESERVED
    known = tf.where(present[:, :-1], rows, MISSING)
    return tf.pad(known, [[0, 0], [1, 0]], constant_values=MISSING)
