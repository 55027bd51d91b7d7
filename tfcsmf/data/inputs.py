"""From positions to encoded tower inputs, with TensorFlow ops only.

The same code serves training (inside `tf.data`), evaluation and export, so a
feature cannot mean different things in two places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import tensorflow as tf

from tfcsmf.data.prepared import EntityTable, Histories
from tfcsmf.data.rows import NUM_RESERVED

QUERY_ID = "user_id"
CANDIDATE_ID = "item_id"

Keeps = Callable[[str, tf.Tensor, tf.Tensor], tf.Tensor]


def history_name(event: str) -> str:
    """Returns the input key of an event's history.

    Example:
      >>> history_name("view")
      'history_view'
    """
    return f"history_{event}"


def time_name(event: str) -> str:
    """Returns the input key of the times of an event's history.

    Example:
      >>> time_name("view")
      'history_view/time'
    """
    # No event is likely to end like this; its argument has no such character.
    return f"{history_name(event)}/time"


class EntityInputs:
    """Encoded inputs of users or candidates by position.

    Args:
      table: the entities.
      id_name: input key of the id row.
    """

    def __init__(self, table: EntityTable, id_name: str) -> None:
        self.size = table.size
        self._columns = {id_name: tf.constant(table.id_rows)} | {
            encoder.name: tf.constant(table.features[encoder.name])
            for encoder in table.encoders
        }

    @classmethod
    def of_columns(cls, columns: dict[str, tf.Tensor]) -> EntityInputs:
        """Returns the inputs of other entities, as `__call__` returned them."""
        inputs = cls.__new__(cls)
        inputs._columns = columns
        return inputs

    def __call__(self, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the inputs of some positions, int [n] -> [n, ...] each."""
        return {
            name: tf.gather(column, positions) for name, column in self._columns.items()
        }


class QueryInputs:
    """Encoded query inputs: user features and histories up to a point in time.

    Args:
      users: the users.
      histories: chronological lists the `history_end` offsets point into: arrays, or
        tensors with something to gather even if all lists are empty.
      length: last events kept per history.
      events: whose histories to give; default all of them.
    """

    def __init__(
        self,
        users: EntityTable | EntityInputs,
        histories: Histories,
        length: int,
        events: Collection[str] | None = None,
    ) -> None:
        if not isinstance(users, EntityInputs):
            users = EntityInputs(users, QUERY_ID)
        self._users = users
        self._length = length
        times = histories.times or {}
        self._times = {
            event: tf.convert_to_tensor(_padded(values))
            for event, values in times.items()
        }
        self._lists = {
            event: (
                column,
                tf.convert_to_tensor(lists.offsets[:-1]),
                tf.convert_to_tensor(_padded(lists.items)),
            )
            for column, (event, lists) in enumerate(histories.lists.items())
            if events is None or event in events
        }

    def __call__(
        self,
        users: tf.Tensor,
        history_end: tf.Tensor,
        keeps: Keeps | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns the inputs of some queries.

        Args:
          users: int [n], user positions.
          history_end: int64 [n, H], see `tfcsmf.data.prepared.Examples`.
          keeps: takes an event, the query of every entry of its histories, int64
            [m], and its catalogue position, int32 [m]; says which of them stay, bool
            [m]. Training leaves out what is to be predicted. Default: all.

        Returns:
          Inputs by name; histories are ragged [n, <= length] int32 id rows, oldest
          first, and their times, where they are known, int64 of the same shape.
        """
        inputs = self._users(users)
        for event, (column, starts, items) in self._lists.items():
            ends = history_end[:, column]
            first = tf.maximum(tf.gather(starts, users), ends - self._length)
            owners, slots = flat_ranges(first, tf.maximum(ends - first, 0))
            positions = tf.gather(items, slots)
            if keeps is not None:
                kept = keeps(event, owners, positions)
                owners = tf.boolean_mask(owners, kept)
                slots = tf.boolean_mask(slots, kept)
                positions = tf.boolean_mask(positions, kept)
            rows = tf.RaggedTensor.from_value_rowids(
                positions + NUM_RESERVED,
                owners,
                nrows=tf.shape(users, tf.int64)[0],
                validate=False,
            )
            inputs[history_name(event)] = rows
            if event in self._times:
                times = tf.gather(self._times[event], slots)
                inputs[time_name(event)] = rows.with_flat_values(times)
        return inputs


def flat_ranges(starts: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lists the values of several ranges one after the other.

    Args:
      starts: int64 [n].
      lengths: int64 [n], >= 0.

    Returns:
      (number of the range, value) of every value, int64 [sum of lengths] each.

    Example:
      >>> owners, values = flat_ranges(tf.constant([5, 0]), tf.constant([2, 1]))
      >>> owners.numpy().tolist(), values.numpy().tolist()
      ([0, 0, 1], [5, 6, 0])
    """
    ranges = tf.ragged.range(starts, starts + lengths)
    return ranges.value_rowids(), ranges.flat_values


def _padded(items: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
    """A list that is empty altogether still needs one row to gather from."""
    return items if tf.is_tensor(items) or len(items) else np.zeros(1, items.dtype)
