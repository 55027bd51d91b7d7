"""What the candidate tower knows of the items in a history, beside their ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from tfcsmf.data.rows import NUM_RESERVED

if TYPE_CHECKING:
    from tfcsmf.towers.tower import Tower

Items = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]


class HistoryFeatures:
    """Encodes the features of items by their embedding row.

    A user who looked at shoes is known to like shoes, also those that nobody has met
    yet: their category has an embedding where their id has none. Tables and
    projections are those of the candidate tower.

    Args:
      tower: the candidate tower; it has features.
      items: gives its inputs by catalogue position, see
        `tfcsmf.data.inputs.EntityInputs`.

    Call arguments: `rows`, int [m], id rows of trained items; `stage` as in `Tower`.
    Returns float [m, sum of `sizes`], the encodings of all features side by side.
    """

    def __init__(self, tower: Tower, items: Items) -> None:
        # Not its own; a closure hides both from Keras' tracking.
        self._shared: Callable[[], tuple[Tower, Items]] = lambda: (tower, items)
        self.sizes = tuple(tower.encoding_sizes[1:])

    @property
    def items(self) -> Items:
        """Inputs of the catalogue by position."""
        return self._shared()[1]

    @property
    def trained(self) -> int:
        """Number of items histories may hold, the first of the catalogue."""
        return int(self._shared()[0].id_table.num_rows) - NUM_RESERVED

    def __call__(self, rows: tf.Tensor, stage: int | None = None) -> tf.Tensor:
        """Encodes features; see the class. Reserved rows give any values."""
        tower, items = self._shared()
        inputs = items(tf.maximum(rows - NUM_RESERVED, 0))
        return tf.concat(tower.encode_features(inputs, stage), axis=1)
