"""Towers with their masks folded away, for serving.

Training keeps one network and masks it by pass. Serving runs every pass, so each
pass of a dense layer gets a plain kernel of its own (S small copies). Tables are
stored once, since S copies of them would multiply the size of the model: where a
pass must not see later entries, the one-byte owners are gathered with the
looked-up rows; where it uses all there is in the table, nothing is masked.

Results are the same numbers as the model's own passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import PADDING
from tfcsmf.towers import MaskedDense, MaskedEmbedding, Tower, keep_owned

Inputs = Mapping[str, tf.Tensor]
Passes = list[tf.Tensor]  # one tensor per pass


class FoldedDense(tf.Module):
    """A `MaskedDense` with one plain kernel per pass.

    Args:
      layer: the trained layer.
      stages: number of passes S.
      blocks: bool [S, units], output units each pass keeps; `None` keeps all.
    """

    def __init__(
        self, layer: MaskedDense, stages: int, blocks: np.ndarray | None = None
    ) -> None:
        super().__init__()
        self.kernels: list[tf.Variable] = []
        for stage in range(stages):
            kernel = layer.kernel_of(stage).numpy()
            if blocks is not None:
                kernel = np.where(blocks[stage], kernel, np.float32(0))
            previous = self.kernels[-1] if self.kernels else None
            if previous is not None and np.array_equal(previous.numpy(), kernel):
                self.kernels.append(previous)  # stored and computed once
            else:
                self.kernels.append(tf.Variable(kernel, trainable=False))
        self.bias = None
        if layer.use_bias:
            self.bias = tf.Variable(layer.bias.numpy(), trainable=False)
        self._activation = layer.activation

    def __call__(self, inputs: Passes) -> Passes:
        """Applies the layer pass by pass, [n, inputs] -> [n, units] each."""
        outputs = []
        for values, kernel in zip(inputs, self.kernels, strict=True):
            values = tf.matmul(values, kernel)
            if self.bias is not None:
                values = tf.nn.bias_add(values, self.bias)
            outputs.append(self._activation(values))
        return outputs


class FoldedTable(tf.Module):
    """A `MaskedEmbedding` that looks rows up once for all passes.

    The table is the layer's own variable, not a copy.

    Args:
      layer: the trained table.
      stages: number of passes S.
    """

    def __init__(self, layer: MaskedEmbedding, stages: int) -> None:
        super().__init__()
        self.table = layer.table
        table, owner = layer.table.numpy(), layer.table_owner.numpy()
        # A pass needs a mask only if a later entry differs from zero.
        self._masked = [
            bool(np.any((owner > stage) & (table != 0))) for stage in range(stages)
        ]
        self._by_entry = layer.ownership == "entries"
        self.owner = layer.table_owner if any(self._masked) else None

    def __call__(self, rows: tf.Tensor) -> Passes:
        """Looks rows up, int [n] -> float [n, dimension] for every pass."""
        values = tf.gather(self.table, rows)
        owner = self.owner
        if owner is not None and self._by_entry:
            owner = tf.gather(owner, rows)
        return [
            keep_owned(values, owner, stage) if masked else values
            for stage, masked in enumerate(self._masked)
        ]

    def pool(self, rows: tf.Tensor) -> Passes:
        """Averages rows that are not `PADDING`, int [n, length], for every pass."""
        present = tf.where(tf.not_equal(rows, PADDING))  # [m, 2]
        values = self(tf.gather_nd(rows, present))
        batch = tf.shape(rows)[0]

        def mean(values: tf.Tensor) -> tf.Tensor:
            # As `MaskedEmbedding.pool` does it: another order is not bit-equal.
            each = tf.range(tf.shape(values)[0])
            return tf.sparse.segment_mean(
                values, each, present[:, 0], num_segments=batch
            )

        return _shared(mean, values)


class FoldedTower(tf.Module):
    """All passes of a trained tower, from encoded inputs.

    Args:
      tower: the trained tower.
      blocks: bool [S, d], the output dimensions of each pass.
      history_table: the folded item table, for a tower with histories.
    """

    def __init__(
        self,
        tower: Tower,
        blocks: np.ndarray,
        history_table: FoldedTable | None = None,
    ) -> None:
        super().__init__()
        stages = len(blocks)
        self._names = (tower.id_name, tuple(tower.features), tuple(tower.histories))
        self.id_table = FoldedTable(tower.id_table, stages)
        self.history_table = history_table
        self.encoders = [
            FoldedDense(layer, stages)
            if isinstance(layer, MaskedDense)
            else FoldedTable(layer, stages)
            for layer in tower.encoders
        ]
        self.layers = [FoldedDense(layer, stages) for layer in tower.hidden]
        # It has neither bias nor activation, so zero columns give zeros.
        self.layers.append(FoldedDense(tower.output_layer, stages, blocks))
        self._stages = stages

    def __call__(self, inputs: Inputs) -> Passes:
        """Returns the vectors of every pass, S times float [n, d]."""
        id_name, features, histories = self._names
        parts = [self.id_table(inputs[id_name])]
        for spec, encoder in zip(features, self.encoders, strict=True):
            values = inputs[spec.name]
            if isinstance(encoder, FoldedDense):
                parts.append(encoder([values] * self._stages))
            else:
                multi = spec.kind == "multi"
                parts.append(encoder.pool(values) if multi else encoder(values))
        for name in histories:
            assert self.history_table is not None  # for the type checker
            parts.append(self.history_table.pool(inputs[name]))
        outputs = [tf.concat(columns, axis=1) for columns in zip(*parts, strict=True)]
        for layer in self.layers:
            outputs = layer(outputs)
        return outputs


def _shared(function: Callable[[tf.Tensor], tf.Tensor], values: Passes) -> Passes:
    """Applies a function once per distinct tensor; unmasked passes share one."""
    results: dict[int, tf.Tensor] = {}
    for value in values:
        if id(value) not in results:
            results[id(value)] = function(value)
    return [results[id(value)] for value in values]
