"""An embedding table whose entries are owned by stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from tfcsmf.data.rows import PADDING
from tfcsmf.towers.ownership import OwnedParameter, keep_owned, new_owner
from tfcsmf.towers.shards import ShardedNormal, on_device, take_rows

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
      shard_rows: a table of more rows is kept in shards of so many, a multiple of 4,
        which changes no number; `None` keeps it whole. One owned by columns always
        is: its columns are compared as a whole.
      devices: hold the shards in turn; none for where all else is.

    Attributes:
      tables: the shards in order, or the one whole table.
      owners: of each shard.

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
        shard_rows: int | None = None,
        devices: Sequence[str] = (),
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
        if shard_rows is not None and (shard_rows < 1 or shard_rows % 4):
            raise ValueError(
                "`shard_rows` should be a positive multiple of 4. "
                f"Received: {shard_rows}."
            )
        self.num_rows = num_rows
        self.dimension = dimension
        self.ownership = ownership
        self.shard_rows = shard_rows
        self._devices = tuple(devices)
        self.scale = dimension**-0.5 if scale is None else scale

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the table and its owners."""
        if self.shard_rows is not None and self.num_shards > 1:
            self._build_shards(self.shard_rows)
        else:
            self.table = self.add_weight(
                name="table",
                shape=(self.num_rows, self.dimension),
                initializer=tf.keras.initializers.RandomNormal(stddev=self.scale),
            )
            shape = self._owner_shape(self.num_rows)
            self.table_owner = new_owner("table_owner", shape)
        super().build(input_shape)

    @property
    def num_shards(self) -> int:
        """Shards of the table; 1 is the table as a whole."""
        if self.shard_rows is None or self.ownership == "columns":
            return 1
        return -(-self.num_rows // self.shard_rows)

    @property
    def tables(self) -> list[tf.Variable]:
        """See the class."""
        return list(self._shards) if self.num_shards > 1 else [self.table]

    @property
    def owners(self) -> list[tf.Variable]:
        """See the class."""
        return list(self._shard_owners) if self.num_shards > 1 else [self.table_owner]

    def _build_shards(self, size: int) -> None:
        initializer = ShardedNormal(self.dimension, self.scale)
        self._shards, self._shard_owners = [], []
        devices = itertools.cycle(self._devices or [None])
        for number, first in enumerate(range(0, self.num_rows, size)):
            last = min(first + size, self.num_rows)
            with on_device(next(devices)):
                name = f"table_{number}"
                initial = initializer.rows(first, last)
                self._shards.append(tf.Variable(initial, name=name))
                owner = new_owner(f"{name}_owner", self._owner_shape(last - first))
                self._shard_owners.append(owner)

    def _owner_shape(self, rows: int) -> tuple[int, int]:
        if self.ownership == "entries":
            return rows, self.dimension
        return 1, self.dimension if self.ownership == "columns" else 1

    def block(self, rows: tf.Tensor) -> RowBlock:
        """Takes distinct rows out of the table, for lookups by their number.

        Args:
          rows: int [n], distinct; the reserved rows first.
        """
        return RowBlock(rows, take_rows(self.tables, rows))

    def call(
        self,
        rows: tf.Tensor,
        stage: int | None = None,
        block: RowBlock | None = None,
    ) -> tf.Tensor:
        """Looks rows up; see the class. With a block, `rows` are numbers in it."""
        if block is None and self.num_shards > 1:
            distinct, numbers = tf.unique(tf.reshape(rows, [-1]))
            # Each comes from its shard once.
            block, rows = self.block(distinct), tf.reshape(numbers, tf.shape(rows))
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
        owner = self.owners[0]  # the same in all shards, unless owned by entries
        if self.ownership == "entries":
            owner = take_rows(self.owners, rows)
        return keep_owned(values, owner, stage)

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns the table, or each of its shards, with its owners."""
        table = f"{prefix}/{self.name}/table"
        sharded = self.num_shards > 1
        return [
            OwnedParameter(
                f"{table}/{number}" if sharded else table,
                variable,
                owner,
                "table",
                self.scale,
                table if sharded else None,
            )
            for number, (variable, owner) in enumerate(
                zip(self.tables, self.owners, strict=True)
            )
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "num_rows": self.num_rows,
            "dimension": self.dimension,
            "ownership": self.ownership,
            "scale": self.scale,
            "shard_rows": self.shard_rows,
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
    # One entry more, in a list of its own that is cut off again: TensorFlow leaves the
    # gradient of no entries at all uninitialised (tensorflow/tensorflow#72785).
    count = lists.nrows()
    more = tf.minimum(tf.shape(values)[0], 1)  # none where there is nothing to pool
    flat = tf.concat([flat, tf.zeros([more], flat.dtype)], axis=0)
    owners = tf.concat([lists.value_rowids(), tf.fill([more], count)], axis=0)
    pooled = POOLING[combiner](values, flat, owners, num_segments=count + 1)[:count]
    return tf.ensure_shape(pooled, [lists.shape[0], values.shape[1]])
