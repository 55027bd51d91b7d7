"""Sequence encoders with their masks folded away, for serving.

An encoder is copied once per pass, with plain kernels. Item tables are those of the
candidate tower, and tokens of the items of a request are made for all passes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfcsmf.data.merged_lists import merge_lists
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.heterrec.layers import OwnedLayer
from tfcsmf.heterrec.query_sequence import QuerySequence, encode_last
from tfcsmf.retrieval.folding import (
    FoldedDense,
    FoldedTower,
    Inputs,
    ItemFeatures,
    encode_features,
)
from tfcsmf.towers.ownership import keep_owned
from tfcsmf.towers.tower import build_layer


class FoldedLayer(tf.Module):
    """A copy of a layer with the plain parameters of one pass.

    Args:
      layer: trained; its `from_config` gives one like it.
      stage: the pass; `None` shares the layer as it is.
    """

    def __init__(self, layer: OwnedLayer, stage: int | None) -> None:
        super().__init__()
        copy = layer
        if stage is not None:
            copy = type(layer).from_config(layer.get_config())
            build_layer(copy, 0)
            pairs = (layer.owned_parameters(""), copy.owned_parameters(""))
            for source, target in zip(*pairs, strict=True):
                value = tf.convert_to_tensor(source.variable)
                if source.role != "bias":
                    value = keep_owned(value, source.owner, stage)
                target.variable.assign(value)
        # TensorFlow would trace and save every Keras layer by itself.
        self.layer = lambda: copy
        self.parameters = [p.variable for p in copy.owned_parameters("")]


class FoldedSequence(tf.Module):
    """All passes of a `QuerySequence`.

    Args:
      layer: the trained layer.
      candidate: the folded candidate tower of the same passes.
      passes: the stages whose passes are wanted, S of them.
    """

    def __init__(
        self, layer: QuerySequence, candidate: FoldedTower, passes: Sequence[int]
    ) -> None:
        super().__init__()
        tower, items = layer.shared
        owner = layer.history_owner.numpy()
        # Hidden from tracking, which changes lists.
        seen = [
            [name for name, own in zip(layer.histories, owner, strict=True) if own <= s]
            for s in passes
        ]
        self._seen = lambda: seen
        self._names = (tuple(layer.histories), layer.length, layer.width)
        self._timed = layer.with_times
        self.id_table = candidate.id_table
        self.encoders = candidate.encoders if layer.with_features else []
        self._specs: tuple[Any, ...] = tuple(tower.features)
        features = [spec.name for spec in tower.features] if self.encoders else []
        trained = tower.id_table.num_rows - NUM_RESERVED
        self.items = ItemFeatures(items, features, trained)
        self.projections = [FoldedDense(part, passes) for part in layer.projections]
        self.passes = [FoldedLayer(layer.encoder, stage) for stage in passes]

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        """Returns the encodings of every pass, float [S, n, width].

        Args:
          inputs: padded histories by name, int rows [n, any], and their times.
        """
        histories, length, _ = self._names
        whole = tf.concat([inputs[name] for name in histories], axis=1)
        # What padding looks up is there, whatever the histories hold.
        rows = tf.concat([[0], tf.reshape(whole, [-1])], axis=0)
        numbers, places = tf.unique(rows)
        tokens = self._tokens(numbers)  # [1 or S, m, M, width]
        sizes = [tf.shape(inputs[name])[1] for name in histories]
        local = tf.split(tf.reshape(places[1:], tf.shape(whole)), sizes, axis=1)
        lists = dict(zip(histories, local, strict=True))
        times = {name: inputs[f"{name}/time"] for name in histories if self._timed}
        outputs = []
        for number, (names, folded) in enumerate(
            zip(self._seen(), self.passes, strict=True)
        ):
            # Event types go by all histories: one that is not seen is empty.
            merged = merge_lists(
                [
                    part if name in names else part[:, :0]
                    for name, part in lists.items()
                ],
                length,
                [part if name in names else part[:, :0] for name, part in times.items()]
                or None,
            )
            own = tokens[min(number, tokens.shape[0] - 1)]
            outputs.append(
                encode_last(folded.layer(), own, tf.reshape(merged.rows, [-1]), merged)
            )
        return tf.stack(outputs)

    def _tokens(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the tokens of items, float [1 or S, m, M, width]."""
        values = [self.id_table(rows)]
        if self.encoders:
            features = self.items(rows)
            values += encode_features(self._specs, self.encoders, features)
        parts = [
            layer(value) for layer, value in zip(self.projections, values, strict=True)
        ]
        most = max(part.shape[0] for part in parts)
        parts = [
            part if part.shape[0] == most else tf.repeat(part, most, axis=0)
            for part in parts
        ]
        return tf.stack(parts, axis=2)


def fold_sequence(
    layer: QuerySequence | None, candidate: FoldedTower, passes: Sequence[int]
) -> FoldedSequence | None:
    """Folds a sequence encoder, if there is one; see `FoldedSequence`."""
    return None if layer is None else FoldedSequence(layer, candidate, passes)
