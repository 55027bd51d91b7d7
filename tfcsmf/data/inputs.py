"""From positions to encoded tower inputs, with TensorFlow ops only.

The same code serves training (inside `tf.data`), evaluation and export, so a
feature cannot mean different things in two places.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcsmf.data.prepared import EntityTable, Histories
from tfcsmf.data.rows import NUM_RESERVED, PADDING

QUERY_ID = "user_id"
CANDIDATE_ID = "item_id"


def history_name(event: str) -> str:
    """Returns the input key of an event's history.

    Example:
      >>> history_name("view")
      'history_view'
    """
    return f"history_{event}"


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

    def __call__(self, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the inputs of some positions, int [n] -> [n, ...] each."""
        return {
            name: tf.gather(column, positions) for name, column in self._columns.items()
        }


class QueryInputs:
    """Encoded query inputs: user features and histories up to a point in time.

    Args:
      users: the users.
      histories: chronological lists the `history_end` offsets point into.
      length: last events kept per history.
    """

    def __init__(self, users: EntityTable, histories: Histories, length: int) -> None:
        self._users = EntityInputs(users, QUERY_ID)
        self._length = length
        self._lists = {
            event: (tf.constant(lists.offsets[:-1]), tf.constant(_padded(lists.items)))
            for event, lists in histories.lists.items()
        }

    def __call__(
        self,
        users: tf.Tensor,
        history_end: tf.Tensor,
        excluded_items: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns the inputs of some queries.

        Args:
          users: int [n], user positions.
          history_end: int64 [n, H], see `tfcsmf.data.prepared.Examples`.
          excluded_items: int [n], catalogue positions to leave out of the
            histories: the target of a training example.

        Returns:
          Inputs by name; histories are int32 [n, length] id rows, newest first,
          padded with `PADDING`.
        """
        inputs = self._users(users)
        back = tf.range(1, self._length + 1, dtype=tf.int64)  # [length]
        for column, (event, (starts, items)) in enumerate(self._lists.items()):
            slots = history_end[:, column, tf.newaxis] - back  # [n, length]
            valid = slots >= tf.gather(starts, users)[:, tf.newaxis]
            positions = tf.gather(items, tf.maximum(slots, 0))
            if excluded_items is not None:
                valid &= tf.not_equal(positions, excluded_items[:, tf.newaxis])
            inputs[history_name(event)] = tf.where(
                valid, positions + NUM_RESERVED, PADDING
            )
        return inputs


def _padded(items: np.ndarray) -> np.ndarray:
    """A list that is empty altogether still needs one row to gather from."""
    return items if len(items) else np.zeros(1, np.int32)
