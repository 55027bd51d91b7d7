"""Towers with their masks folded away, for serving.

Training keeps one network and masks it by pass. Serving runs every pass, so each
pass of a dense layer gets a plain kernel of its own (S small copies). Tables are
stored once, since S copies of them would multiply the size of the model: where a
pass must not see later entries, the one-byte owners are gathered with the
looked-up rows; where it uses all there is in the table, nothing is masked.

Results are the same numbers as the model's own passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import PADDING
from tfcsmf.towers import MaskedDense, MaskedEmbedding, Tower

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
        """Applies the layer pass by pass, [n, inputs] -> [n, units] each.

        A product per pass, as the model has it: nothing promises that one of stacked
        kernels rounds alike, and products are a small part of a request.
        """
        outputs: dict[tuple[int, int], tf.Tensor] = {}
        keys = [
            (id(values), id(kernel))
            for values, kernel in zip(inputs, self.kernels, strict=True)
        ]
        for key, values, kernel in zip(keys, inputs, self.kernels, strict=True):
            if key in outputs:
                continue  # equal passes are computed once
            values = tf.matmul(values, kernel)
            if self.bias is not None:
                values = tf.nn.bias_add(values, self.bias)
            outputs[key] = self._activation(values)
        return [outputs[key] for key in keys]


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
        # Masks are needed only if a pass must not see an entry that is not zero.
        hidden = [np.any((owner > stage) & (table != 0)) for stage in range(stages)]
        self._by_entry = layer.ownership == "entries"
        self._dimension = layer.dimension
        self._stages = np.arange(stages, dtype=np.int8)[:, np.newaxis]  # [S, 1]
        self.owner = layer.table_owner if any(hidden) else None

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Looks rows up for all passes at once.

        Args:
          rows: int [n].

        Returns:
          float [n, S, dimension], or [n, 1, dimension] if all passes are equal.
        """
        values = tf.gather(self.table, rows)[:, tf.newaxis]
        if self.owner is None:
            return values
        owner = tf.gather(self.owner, rows) if self._by_entry else self.owner
        used = owner[:, tf.newaxis] <= self._stages  # [n or 1, S, dimension]
        return tf.where(used, values, 0.0)

    def pool(self, rows: tf.Tensor) -> tf.Tensor:
        """Averages rows that are not `PADDING`, int [n, length], for every pass.

        Returns:
          As a lookup does.
        """
        present = tf.where(tf.not_equal(rows, PADDING))  # [m, 2]
        values = self(tf.gather_nd(rows, present))
        passes = values.shape[1]
        # As `MaskedEmbedding.pool` does it: another order is not bit-equal. Passes are
        # averaged side by side.
        values = tf.reshape(values, [-1, passes * self._dimension])
        pooled = tf.sparse.segment_mean(
            values,
            tf.range(tf.shape(values)[0]),
            present[:, 0],
            num_segments=tf.shape(rows)[0],
        )
        return tf.reshape(pooled, [-1, passes, self._dimension])


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
        """Returns the vectors of every pass, S times float [n, d].

        Histories should be padded to one length.
        """
        id_name, features, histories = self._names
        parts = [self.id_table(inputs[id_name])]  # [n, 1 or S, width] each
        for spec, encoder in zip(features, self.encoders, strict=True):
            values = inputs[spec.name]
            if isinstance(encoder, FoldedDense):
                parts.append(tf.stack(encoder([values] * self._stages), axis=1))
            else:
                multi = spec.kind == "multi"
                parts.append(encoder.pool(values) if multi else encoder(values))
        if histories:
            assert self.history_table is not None  # for the type checker
            lists = tf.concat([inputs[name] for name in histories], axis=0)
            parts += tf.split(self.history_table.pool(lists), len(histories))
        outputs = self._passes(parts)
        for layer in self.layers:
            outputs = layer(outputs)
        return outputs

    def _passes(self, parts: list[tf.Tensor]) -> Passes:
        """Concatenates the encodings of every pass; equal passes are one tensor."""
        passes = max(part.shape[1] for part in parts)
        whole = [
            part if part.shape[1] == passes else tf.repeat(part, passes, axis=1)
            for part in parts
        ]
        encodings = tf.unstack(tf.concat(whole, axis=2), axis=1)
        return encodings * (self._stages // passes)
