"""An embedding table whose entries are owned by stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from tfcsmf.data.rows import PADDING
from tfcsmf.towers.ownership import OwnedParameter, keep_owned, new_owner

Ownership = Literal["entries", "columns", "frozen"]
Combiner = Literal["mean", "sqrtn"]

# Serving uses the same ones: any other order of the sums is not bit-equal.
POOLING = {"mean": tf.sparse.segment_mean, "sqrtn": tf.sparse.segment_sqrt_n}


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a table, taken out once for all lookups of a batch.

    The gradient with respect to the table then has one entry per row.

    Attributes:
      rows: int [n], distinct rows.
      values: float [n, dimension].
    """

    rows: tf.Tensor
    values: tf.Tensor


class MaskedEmbedding(tf.keras.layers.Layer):
    """A lookup table with owners by entry, by column, or as a whole.

    Most of the capacity of a retrieval model sits in its tables, so they take
    part in the cascade (our reading; the three options are to be measured):

    - `entries`: CPP on single entries; a one-byte owner is gathered with each
      looked-up entry, so the cost does not depend on the size of the table;
    - `columns`: CPP on columns, one owner each; cheap and coarse;
    - `frozen`: the first stage owns all of it.

    Args:
      num_rows: rows of the table, reserved ones included.
      dimension: columns.
      ownership: see above.
      scale: standard deviation of the initial entries; default
        `dimension ** -0.5`.

    Call arguments: `rows`, int [...]; `stage`: 0-based pass, or `None` for the
    raw table (the stage in training). Returns float [..., dimension].

    Example:
      >>> table = MaskedEmbedding(10, 4)
      >>> table(tf.constant([3, 4])).shape.as_list()
      [2, 4]
    """

    def __init__(
        self,
        num_rows: int,
        dimension: int,
        ownership: Ownership = "entries",
        scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_rows < 1 or dimension < 1:
            raise ValueError(
                "`num_rows` and `dimension` should be at least 1. "
                f"Received: {num_rows} and {dimension}."
            )
        if ownership not in ("entries", "columns", "frozen"):
            raise ValueError(
                "`ownership` should be 'entries', 'columns' or 'frozen'. "
                f"Received: {ownership!r}."
            )
        self.num_rows = num_rows
        self.dimension = dimension
        self.ownership = ownership
        self.scale = dimension**-0.5 if scale is None else scale

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the table and its owners."""
        self.table = self.add_weight(
            name="table",
            shape=(self.num_rows, self.dimension),
            initializer=tf.keras.initializers.RandomNormal(stddev=self.scale),
        )
        shapes = {
            "entries": (self.num_rows, self.dimension),
            "columns": (1, self.dimension),
            "frozen": (1, 1),
        }
        self.table_owner = new_owner("table_owner", shapes[self.ownership])
        super().build(input_shape)

    def block(self, rows: tf.Tensor) -> RowBlock:
        """Takes distinct rows out of the table, for lookups by their number.

        Args:
          rows: int [n], distinct; the reserved rows first.
        """
        return RowBlock(rows, tf.gather(self.table, rows))

    def call(
        self,
        rows: tf.Tensor,
        stage: int | None = None,
        block: RowBlock | None = None,
    ) -> tf.Tensor:
        """Looks rows up; see the class. With a block, `rows` are numbers in it."""
        if block is not None:
            return tf.gather(self._masked(block.values, block.rows, stage), rows)
        return self._masked(tf.gather(self.table, rows), rows, stage)

    def pool(
        self,
        rows: tf.Tensor | tf.RaggedTensor,
        stage: int | None = None,
        block: RowBlock | None = None,
        combiner: Combiner = "mean",
    ) -> tf.Tensor:
        """Pools the rows that are not `PADDING`.

        Args:
          rows: int [batch, length], padded with `PADDING` anywhere; or ragged
            [batch, <= length] without padding.
          stage: as in `call`.
          block: as in `call`.
          combiner: of n rows, the sum over n (`mean`) or over its root (`sqrtn`),
            which keeps the length of a sum of unrelated rows whatever n is.

        Returns:
          float [batch, dimension]; zeros where a list is empty.
        """
        rows = as_ragged(rows)
        flat = rows.flat_values
        if block is not None:
            values = self._masked(block.values, block.rows, stage)
        else:
            values = self.call(flat, stage)
            flat = tf.range(tf.size(flat))
        return pool_values(values, flat, rows, combiner)

    def _masked(
        self, values: tf.Tensor, rows: tf.Tensor, stage: int | None
    ) -> tf.Tensor:
        """Zeroes the entries of looked-up rows that the pass does not use."""
        if stage is None:
            return values
        owner: tf.Tensor = self.table_owner
        if self.ownership == "entries":
            owner = tf.gather(owner, rows)
        return keep_owned(values, owner, stage)

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns the table with its owners."""
        name = f"{prefix}/{self.name}/table"
        return [OwnedParameter(name, self.table, self.table_owner, "table", self.scale)]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "num_rows": self.num_rows,
            "dimension": self.dimension,
            "ownership": self.ownership,
            "scale": self.scale,
        }


def as_ragged(rows: tf.Tensor | tf.RaggedTensor) -> tf.RaggedTensor:
    """Returns lists without padding, so that it costs nothing to look them up.

    Args:
      rows: int [batch, length], padded with `PADDING` anywhere; or ragged
        [batch, <= length] without padding.
    """
    if isinstance(rows, tf.RaggedTensor):
        return rows
    present = tf.where(tf.not_equal(rows, PADDING))  # [n, 2]
    return tf.RaggedTensor.from_value_rowids(
        tf.gather_nd(rows, present),
        present[:, 0],
        nrows=tf.shape(rows, tf.int64)[0],
        validate=False,
    )


def pool_values(
    values: tf.Tensor, flat: tf.Tensor, lists: tf.RaggedTensor, combiner: Combiner
) -> tf.Tensor:
    """Pools the entries of lists.

    Args:
      values: float [m, dimension].
      flat: int [n], the number in `values` of every entry of all lists.
      lists: ragged [batch, any], n entries.
      combiner: see `MaskedEmbedding.pool`.

    Returns:
      float [batch, dimension]; zeros where a list is empty.
    """
    pooled = POOLING[combiner](
        values, flat, lists.value_rowids(), num_segments=lists.nrows()
    )
    return tf.ensure_shape(pooled, [lists.shape[0], values.shape[1]])
