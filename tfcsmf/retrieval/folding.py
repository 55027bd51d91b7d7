"""Towers with their masks folded away, for serving.

Training keeps one network and masks it by pass. Serving runs every pass, all of them
at once: a request is mostly small operations, and their number should not grow with the
objectives. So the kernels of the passes of a dense layer are stacked (S small copies).
So are small tables. Larger ones are stored once, since S copies would multiply the size
of the model: where a pass must not see later entries, the one-byte owners are gathered
with the looked-up rows; where it uses all there is in the table, nothing is masked.

Passes are the first axis of all that flows through a folded tower, of size 1 as long as
they are equal. Results are the same numbers as the model's own passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import NUM_RESERVED, PADDING
from tfcsmf.towers import (
    POOLING,
    Combiner,
    FeatureSpec,
    HistoryFeatures,
    MaskedDense,
    MaskedEmbedding,
    Tower,
)
from tfcsmf.towers.shards import is_remote

Inputs = Mapping[str, tf.Tensor]

_STACKED_ENTRIES = 1 << 20  # of all passes of a table together, 4 MB


class FoldedDense(tf.Module):
    """A `MaskedDense` with the plain kernels of all passes.

    Args:
      layer: the trained layer.
      passes: the stages whose passes are wanted, S of them.
      blocks: bool [S, units], output units each pass keeps; `None` keeps all.
    """

    def __init__(
        self,
        layer: MaskedDense,
        passes: Sequence[int],
        blocks: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        kernels = np.stack([layer.kernel_of(stage).numpy() for stage in passes])
        if blocks is not None:
            kernels = np.where(blocks[:, np.newaxis], kernels, np.float32(0))
        if np.all(kernels == kernels[:1]):
            kernels = kernels[:1]  # stored and computed once
        self.kernels = tf.Variable(kernels, trainable=False)  # [P, inputs, units]
        self.bias = None
        if layer.use_bias:
            self.bias = tf.Variable(layer.bias.numpy(), trainable=False)
        self._activation = layer.activation

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the layer, [1 or S, n, inputs] -> [1 or S, n, units]."""
        outputs = tf.matmul(inputs, self.kernels)
        if self.bias is not None:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return self._activation(outputs)


class FoldedTable(tf.Module):
    """A `MaskedEmbedding` that looks rows up once for all passes.

    A table too large to be stacked is the layer's own variable, not a copy; one in
    shards is put together.

    Args:
      layer: the trained table.
      passes: the stages whose passes are wanted, S of them.
    """

    def __init__(self, layer: MaskedEmbedding, passes: Sequence[int]) -> None:
        super().__init__()
        self._passes = np.array(passes, np.int8)[:, np.newaxis, np.newaxis]
        self._by_entry = layer.ownership == "entries"
        self._dimension = layer.dimension
        # Masks are needed only if a pass must not see an entry that is not zero.
        shards = zip(layer.tables, layer.owners, strict=True)
        masked = any(_hides(table, owner, passes) for table, owner in shards)
        size = layer.num_rows * layer.dimension * len(passes)
        stacked = masked and size <= _STACKED_ENTRIES
        self.table = _whole(layer.tables)
        owner = _whole(layer.owners if self._by_entry else layer.owners[:1])
        if stacked:
            values = self.table.numpy()
            used = np.where(owner.numpy() <= self._passes, values, np.float32(0))
            self.table = tf.Variable(used, trainable=False)  # [S, rows, dimension]
        self.owner = owner if masked and not stacked else None

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Looks rows up for all passes at once.

        Args:
          rows: int [n].

        Returns:
          float [S, n, dimension], or [1, n, dimension] if all passes are equal.
        """
        if len(self.table.shape) == 3:
            return tf.gather(self.table, rows, axis=1)
        values = tf.gather(self.table, rows)[tf.newaxis]
        if self.owner is None:
            return values
        owner = tf.gather(self.owner, rows) if self._by_entry else self.owner
        return tf.where(owner <= self._passes, values, 0.0)

    def pool(self, rows: tf.Tensor, combiner: Combiner = "mean") -> tf.Tensor:
        """Pools rows that are not `PADDING`, int [n, length], for every pass.

        Args:
          rows: see above.
          combiner: see `MaskedEmbedding.pool`.

        Returns:
          As a lookup does.
        """
        return pool_passes(self, rows, combiner)


def _hides(table: tf.Variable, owner: tf.Variable, passes: Sequence[int]) -> bool:
    """Returns whether a pass must not see an entry that is not zero."""
    used, owners = table.numpy() != 0, owner.numpy()
    return any(bool(np.any((owners > stage) & used)) for stage in passes)


def _whole(shards: Sequence[tf.Variable]) -> tf.Variable:
    """Returns the variable itself, or one with the rows of all shards."""
    if len(shards) == 1 and not is_remote(shards[0]):
        return shards[0]
    size = [sum(shard.shape[0] for shard in shards), shards[0].shape[1]]
    whole = tf.Variable(tf.zeros(size, shards[0].dtype), trainable=False)
    first = 0
    for shard in shards:  # in place, so that there is one copy
        whole[first : first + shard.shape[0]].assign(shard.numpy())
        first += shard.shape[0]
    return whole


class ItemFeatures(tf.Module):
    """Encoded features of the trained items, by embedding row.

    Args:
      items: inputs of the catalogue by position.
      names: of the features that are wanted.
      trained: leading positions that are trained.
    """

    def __init__(
        self, items: Callable[[tf.Tensor], Inputs], names: Sequence[str], trained: int
    ) -> None:
        super().__init__()
        # At least one, to look up what padding stands for.
        inputs = items(tf.range(max(trained, 1)))
        self.columns = {
            name: tf.Variable(inputs[name], trainable=False) for name in names
        }

    def __call__(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns inputs by name; rows below `NUM_RESERVED` give any."""
        positions = tf.maximum(rows - NUM_RESERVED, 0)
        return {
            name: tf.gather(column, positions) for name, column in self.columns.items()
        }


class FoldedHistoryFeatures(tf.Module):
    """All passes of `HistoryFeatures`.

    Args:
      features: what is folded.
      candidate: the folded candidate tower of the same passes.
    """

    def __init__(self, features: HistoryFeatures, candidate: FoldedTower) -> None:
        super().__init__()
        names = [spec.name for spec in candidate.features]
        self.items = ItemFeatures(features.items, names, features.trained)
        self.encoders = candidate.encoders
        self._features = candidate.features

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the encodings of id rows, float [1 or S, m, width]."""
        return joined(encode_features(self._features, self.encoders, self.items(rows)))


def fold_history_features(
    query: Tower, candidate: FoldedTower
) -> FoldedHistoryFeatures | None:
    """Folds what a query tower reads of items in histories beside their ids."""
    if query.history_features is None:
        return None
    return FoldedHistoryFeatures(query.history_features, candidate)


def encode_features(
    features: Sequence[FeatureSpec],
    encoders: Sequence[FoldedDense | FoldedTable],
    inputs: Inputs,
) -> list[tf.Tensor]:
    """Returns the encodings of features, float [1 or S, n, columns] each."""
    parts = []
    for spec, encoder in zip(features, encoders, strict=True):
        values = inputs[spec.name]
        if isinstance(encoder, FoldedDense):
            parts.append(encoder(values[tf.newaxis]))
        else:
            multi = spec.kind == "multi"
            parts.append(encoder.pool(values) if multi else encoder(values))
    return parts


def pool_passes(
    encode: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor, combiner: Combiner
) -> tf.Tensor:
    """Pools encodings of the rows that are not `PADDING`, for every pass.

    Args:
      encode: takes int [m], gives float [1 or S, m, width].
      rows: int [n, length].
      combiner: see `MaskedEmbedding.pool`.

    Returns:
      float [1 or S, n, width].
    """
    present = tf.where(tf.not_equal(rows, PADDING))  # [m, 2]
    values = encode(tf.gather_nd(rows, present))
    passes, size = values.shape[0], tf.shape(rows, tf.int64)[0]
    width = values.shape[2]
    # The lists of all passes one after the other.
    lists = present[:, 0] + size * tf.range(passes, dtype=tf.int64)[:, tf.newaxis]
    lists = tf.reshape(lists, [-1])
    # As `MaskedEmbedding.pool` does it: another order is not bit-equal.
    pooled = POOLING[combiner](
        tf.reshape(values, [-1, width]),
        tf.range(tf.size(lists)),
        lists,
        num_segments=size * passes,
    )
    return tf.reshape(pooled, [passes, -1, width])


class FoldedTower(tf.Module):
    """All passes of a trained tower, from encoded inputs.

    Args:
      tower: the trained tower.
      blocks: bool [S, d], the output dimensions of each pass.
      history_table: the folded item table of the same passes, for a tower with
        histories.
      history_features: folded, of a tower that has them.
      sequence: the folded sequence encoder of a tower that has one.
      passes: the stages whose passes are wanted, S of them; default the first S.
    """

    def __init__(
        self,
        tower: Tower,
        blocks: np.ndarray,
        history_table: FoldedTable | None = None,
        passes: Sequence[int] | None = None,
        history_features: FoldedHistoryFeatures | None = None,
        sequence: Callable[[Inputs], tf.Tensor] | None = None,
    ) -> None:
        super().__init__()
        passes = range(len(blocks)) if passes is None else passes
        self._names = (tower.id_name, tuple(tower.features), tuple(tower.histories))
        self.id_table = FoldedTable(tower.id_table, passes)
        self.history_table = history_table
        self.history_features = history_features
        self.sequence = sequence
        self.encoders = [
            FoldedDense(layer, passes)
            if isinstance(layer, MaskedDense)
            else FoldedTable(layer, passes)
            for layer in tower.encoders
        ]
        self.hidden = [FoldedDense(layer, passes) for layer in tower.hidden]
        # It has neither bias nor activation, so zero columns give zeros.
        self.output_layer = FoldedDense(tower.output_layer, passes, blocks)

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """What is known of the entity beside its id."""
        return self._names[1]

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        """Returns the vectors of every pass, float [S, n, d].

        Histories should be padded to one length.
        """
        id_name, features, histories = self._names
        parts = [self.id_table(inputs[id_name])]  # [1 or S, n, width] each
        parts += encode_features(features, self.encoders, inputs)
        if histories:
            assert self.history_table is not None  # for the type checker
            lists = tf.concat([inputs[name] for name in histories], axis=0)
            pooled = [self.history_table.pool(lists, "sqrtn")]
            if self.history_features is not None:
                pooled.append(pool_passes(self.history_features, lists, "sqrtn"))
            parts += tf.split(joined(pooled), len(histories), axis=1)
        if self.sequence is not None:
            parts.append(self.sequence(inputs))
        encodings = outputs = joined(parts)
        for layer in self.hidden:
            outputs = layer(outputs)
        seen = joined([outputs, encodings]) if self.hidden else encodings
        return self.output_layer(seen)


def joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Joins the columns of parts, [1 or S, n, width] each."""
    passes = max(part.shape[0] for part in parts)
    return tf.concat(
        [
            part if part.shape[0] == passes else tf.repeat(part, passes, axis=0)
            for part in parts
        ],
        axis=2,
    )
