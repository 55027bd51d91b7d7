"""The two towers: encoded inputs to a vector, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.rows import PADDING, UNKNOWN
from tfcsmf.errors import DataError
from tfcsmf.towers.history_features import HistoryFeatures
from tfcsmf.towers.linear_path import beside, item_start, start_linear
from tfcsmf.towers.masked_dense import MaskedDense
from tfcsmf.towers.masked_embedding import (
    MaskedEmbedding,
    RowBlock,
    as_ragged,
    pool_values,
)
from tfcsmf.towers.ownership import OwnedParameter

Blocks = Mapping[str, RowBlock]
NO_BLOCKS: Blocks = {}

# Standard deviations of initial tables. Small: what was not trained yet is noise beside
# the histories, that of query ids most of all (our choice, not measured by itself). So
# are item ids beside the features of items: an item of two events is known by its
# category (`docs/results.md`).
CANDIDATE_SCALE = 0.05
FEATURED_SCALE = 0.01
QUERY_SCALE = 0.015
FEATURE_SCALE = 0.15


@dataclass(frozen=True)
class FeatureSpec:
    """What a tower has to know of a fitted feature.

    Attributes:
      name: key in the tower's inputs.
      kind: `categorical`, `numeric` (both one row per entity), `multi` (rows padded
        with `PADDING`) or `vector` (floats).
      size: rows of the table; for `vector` the width of the input.
    """

    name: str
    kind: str
    size: int


class Tower(tf.keras.layers.Layer):
    """An id, features and pooled histories, through masked dense layers.

    The last layer is linear and sees the encodings beside the last hidden
    activations. At the start a vector is the sum of the embeddings of the id and of
    the histories (see `start_linear`). Histories are pooled as sum / sqrt(n):
    what is known of a user moves the vector more, the more there is of it.

    Args:
      id_name: key of the id rows in the inputs (`user_id` or `item_id`).
      num_ids: rows of the id table.
      features: fitted features, in order.
      dimension: output size d.
      hidden_units: sizes of the hidden layers; may be empty.
      embedding_dimension: columns of the id table.
      feature_dimension: columns of each feature table or projection.
      activation: of the hidden layers.
      ownership: of all tables; see `MaskedEmbedding`.
      id_dropout: probability that training sees `UNKNOWN` for the id.
      id_hidden: the same by row of the id table, float [num_ids], instead.
      dropout: rate on the input of every dense layer in training.
      histories: keys of history inputs: rows of `history_table`, ragged or padded
        int [batch, length]. One that is not given is empty.
      history_dropout: share of every history's rows that training leaves out.
      history_table: the candidate tower's id table, shared and owned there.
      history_features: encodings of the features of the items in histories, pooled
        as their ids are; None for ids alone.
      is_item: this is a tower of items: its features start as `history_features`
        of the other tower do.
      id_scale: standard deviation of the initial id table.
      copies: equal parts of the output that start as the identity each; for
        vectors with a block of their own per objective.
      sequence: a layer that encodes all histories together
        (`tfcsmf.heterrec.query_sequence.QuerySequence`); its encoding, the last one,
        starts without a part in the output. None for pooled histories alone.
      shard_rows: of the id table, see `MaskedEmbedding`.
      devices: of the id table, see `MaskedEmbedding`.

    Call arguments: `inputs`, a mapping of the keys above to encoded tensors;
    `stage`, the 0-based pass or `None` for the stage in training; `seed`, int
    [2], switches dropout on (stateless, so that a resumed run repeats it);
    `blocks`, by id name, the rows that ids in `inputs` are numbers in (see
    `tfcsmf.data.batch_rows.row_blocks`); `part`, int [3] of (first, last, batch), the
    rows to encode, with the dropout they have in the whole batch (but for `sequence`,
    which draws its own).
    Returns float [batch, d], or [last - first, d] of a part.
    """

    def __init__(
        self,
        id_name: str,
        num_ids: int,
        features: Sequence[FeatureSpec] = (),
        dimension: int = 64,
        hidden_units: Sequence[int] = (128,),
        embedding_dimension: int = 64,
        feature_dimension: int = 16,
        activation: str = "relu",
        ownership: Any = "entries",
        id_dropout: float = 0.0,
        id_hidden: np.ndarray | None = None,
        dropout: float = 0.0,
        histories: Sequence[str] = (),
        history_dropout: float = 0.0,
        history_table: MaskedEmbedding | None = None,
        history_features: HistoryFeatures | None = None,
        is_item: bool = False,
        id_scale: float = CANDIDATE_SCALE,
        copies: int = 1,
        sequence: Any = None,
        shard_rows: int | None = None,
        devices: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if histories and history_table is None:
            raise ValueError(
                "`history_table` should be the candidate tower's id table when "
                f"`histories` are used. Received: None with {list(histories)}."
            )
        self.id_name = id_name
        self.features = tuple(
            FeatureSpec(**spec) if isinstance(spec, Mapping) else spec
            for spec in features
        )
        self.dimension = dimension
        self.id_dropout = id_dropout
        # Data, and no part of the saved configuration.
        chances = None if id_hidden is None else tf.constant(id_hidden, tf.float32)
        self._id_hidden: Callable[[], tf.Tensor | None] = lambda: chances
        self.dropout = dropout
        self.histories = tuple(histories)
        _check_names([spec.name for spec in self.features], self.histories)
        self.history_dropout = history_dropout
        self.is_item = is_item
        self.copies = copies
        self.sequence = sequence
        self._settings = {
            "num_ids": num_ids,
            "hidden_units": tuple(hidden_units),
            "embedding_dimension": embedding_dimension,
            "feature_dimension": feature_dimension,
            "activation": activation,
            "ownership": ownership,
            "id_scale": id_scale,
            "shard_rows": shard_rows,
        }
        # Owned by the candidate tower; a closure hides it from Keras tracking, so
        # that the shared table is saved, counted and updated once.
        self._history_table: Callable[[], Any] = lambda: history_table
        self.history_features = history_features
        self.id_table = MaskedEmbedding(
            num_ids,
            embedding_dimension,
            ownership,
            id_scale,
            shard_rows,
            devices,
            name=id_name,
        )
        # Numbered, because TensorFlow allows few of the characters of column names.
        self.encoders = [
            MaskedDense(feature_dimension, use_bias=False, name=f"feature_{index}")
            if spec.kind == "vector"
            else MaskedEmbedding(
                spec.size,
                feature_dimension,
                ownership,
                FEATURE_SCALE,
                name=f"feature_{index}",
            )
            for index, spec in enumerate(self.features)
        ]
        self.hidden = [
            MaskedDense(units, activation, name=f"hidden_{index}")
            for index, units in enumerate(hidden_units)
        ]
        self.output_layer = MaskedDense(
            dimension, use_bias=False, output=True, name="output"
        )

    @property
    def encoding_sizes(self) -> list[int]:
        """Columns of the encodings of the id and of every feature."""
        features = [self._settings["feature_dimension"]] * len(self.features)
        return [self._settings["embedding_dimension"], *features]

    @property
    def input_width(self) -> int:
        """Columns of the concatenated encodings."""
        histories = len(self.histories) * sum(self.history_sizes)
        last = 0 if self.sequence is None else int(self.sequence.width)
        return sum(self.encoding_sizes) + histories + last

    @property
    def history_sizes(self) -> list[int]:
        """Columns of a history's encodings: of ids, and of every feature of items."""
        if not self.histories:
            return []
        features = self.history_features.sizes if self.history_features else ()
        return [int(self._history_table().dimension), *features]

    def encoding_kernels(self) -> list[tuple[MaskedDense, int]]:
        """Returns the layers that see the encodings, and their first row that does.

        The output layer comes last; without hidden layers it is the only one.
        """
        activations = self.hidden[-1].units if self.hidden else 0
        return [
            *((layer, 0) for layer in self.hidden[:1]),
            (self.output_layer, activations),
        ]

    def history_columns(self, name: str) -> slice:
        """Returns the columns of the concatenated encodings a history fills."""
        size = sum(self.history_sizes)
        start = sum(self.encoding_sizes) + self.histories.index(name) * size
        return slice(start, start + size)

    def build(self, input_shape: Any) -> None:
        """Creates all weights, whatever inputs come first."""
        build_layer(self.id_table, 0)
        for spec, encoder in zip(self.features, self.encoders, strict=True):
            build_layer(encoder, spec.size)
        if self.sequence is not None:
            build_layer(self.sequence, 0)
        self.build_dense(self.input_width)
        super().build(input_shape)

    @property
    def dense_layers(self) -> list[MaskedDense]:
        """The layers after the encodings, in order."""
        return [*self.hidden, self.output_layer]

    def build_dense(self, width: int) -> None:
        """Creates the weights of `dense_layers` for encodings of this width."""
        self.build_output(self.output_layer, self.build_hidden(width), self.copies)

    def build_hidden(self, width: int) -> int:
        """Creates the weights of the hidden layers; returns the last one's width."""
        activations = 0
        for layer in self.hidden:
            build_layer(layer, activations or width)
            activations = layer.units
        return activations

    def build_output(
        self, layer: MaskedDense, activations: int, copies: int = 1
    ) -> None:
        """Creates the weights of a layer that sees [activations; encodings]."""
        build_layer(layer, activations + self.input_width)
        sizes = self.encoding_sizes[: None if self.is_item else 1]
        starts = [(0, item_start(sizes, layer.units, copies))]
        for name in self.histories:
            first = self.history_columns(name).start
            starts.append((first, self.history_start(layer.units, copies)))
        start_linear(layer.kernel, activations, starts)
        if self.sequence is not None:
            width = int(self.sequence.width)
            layer.kernel[-width:].assign(tf.zeros([width, layer.units]))

    def history_start(self, units: int, copies: int = 1) -> tf.Tensor:
        """Returns the first values of a history's rows of an output kernel."""
        return item_start(self.history_sizes, units, copies)

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        stage: int | None = None,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
        part: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Encodes a batch; see the class."""
        encodings = activations = self.encode(inputs, stage, seed, blocks, part)
        for index, layer in enumerate(self.hidden):
            activations = layer(self.dropped(activations, seed, index, part), stage)
        seen = beside(activations, encodings)
        seen = self.dropped(seen, seed, len(self.hidden), part)
        return self.output_layer(seen, stage)

    def dropped(
        self,
        inputs: tf.Tensor,
        seed: tf.Tensor | None,
        index: int,
        part: tf.Tensor | None = None,
    ) -> Any:
        """Returns the inputs of dense layer `index` after dropout, if that is on."""
        if seed is None or not self.dropout:
            return inputs
        own = seed + [index + 1, 0]
        if part is None:
            return tf.nn.experimental.stateless_dropout(inputs, self.dropout, own)
        first, last, rows = tf.unstack(part)
        whole = tf.pad(inputs, [[first, rows - last], [0, 0]])
        dropped = tf.nn.experimental.stateless_dropout(whole, self.dropout, own)
        return dropped[first:last]

    def encode(
        self,
        inputs: Mapping[str, tf.Tensor],
        stage: int | None = None,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
        part: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns what the dense layers see, float [batch, input_width]."""
        ids = inputs[self.id_name]
        if seed is not None:
            ids = self._hidden_ids(ids, seed, blocks)
        lists = self._lists(inputs, seed)
        if part is not None:
            first, last, _ = tf.unstack(part)
            inputs = {f.name: inputs[f.name][first:last] for f in self.features}
            lists = {name: rows[first:last] for name, rows in lists.items()}
            ids = ids[first:last]
            if seed is not None:
                seed = tf.random.experimental.stateless_fold_in(seed, first)
        parts = [self.id_table(ids, stage, blocks.get(self.id_name))]
        parts += self.encode_features(inputs, stage)
        parts += self._pooled(lists, tf.shape(ids)[0], stage, blocks)
        if self.sequence is not None and lists:
            block = blocks.get(self._history_table().name)
            parts.append(self.sequence(lists, stage, seed, block))
        elif self.sequence is not None:
            parts.append(tf.zeros([tf.shape(ids)[0], self.sequence.width]))
        return tf.concat(parts, axis=1)

    def _hidden_ids(self, ids: tf.Tensor, seed: tf.Tensor, blocks: Blocks) -> tf.Tensor:
        """Returns ids in training: some are `UNKNOWN`."""
        chance, by_row = self.id_dropout, self._id_hidden()
        if by_row is not None:
            block = blocks.get(self.id_name)
            rows = ids if block is None else tf.gather(block.rows, ids)
            chance = tf.gather(by_row, rows)
        elif not chance:
            return ids
        drawn = tf.random.stateless_uniform(tf.shape(ids), seed)
        return tf.where(drawn < chance, UNKNOWN, ids)

    def encode_features(
        self, inputs: Mapping[str, tf.Tensor], stage: int | None = None
    ) -> list[tf.Tensor]:
        """Returns the encodings of the features, float [batch, columns] each."""
        parts = []
        for spec, encoder in zip(self.features, self.encoders, strict=True):
            values = inputs[spec.name]
            pooled = spec.kind == "multi"
            parts.append((encoder.pool if pooled else encoder)(values, stage))
        return parts

    def _pooled(
        self,
        lists: Mapping[str, tf.Tensor],
        size: tf.Tensor,
        stage: int | None,
        blocks: Blocks,
    ) -> list[tf.Tensor]:
        """Returns the pooled ids, and features, of every history."""
        table, features = self._history_table(), self.history_features
        block = blocks.get(table.name) if table is not None else None
        values = None
        if features is not None and block is not None and lists:
            values = features(block.rows, stage)  # once for all histories
        parts = []
        for name in self.histories:
            if name not in lists:
                parts.append(tf.zeros([size, sum(self.history_sizes)]))
                continue
            rows = as_ragged(lists[name])
            parts.append(table.pool(rows, stage, block, combiner="sqrtn"))
            if features is not None:
                flat, own = rows.flat_values, values
                if own is None:
                    own, flat = features(flat, stage), tf.range(tf.size(flat))
                parts.append(pool_values(own, flat, rows, "sqrtn"))
        return parts

    def _lists(
        self, inputs: Mapping[str, tf.Tensor], seed: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """Returns the histories that are given and their times, after dropout."""
        lists = {}
        for number, history in enumerate(self.histories):
            for name in (history, f"{history}/time"):
                if name not in inputs:
                    continue
                lists[name] = inputs[name]
                if seed is not None and self.history_dropout:
                    # The same draws for both, which have the same shape.
                    own = seed + [0, number + 1]
                    lists[name] = thinned(lists[name], self.history_dropout, own)
        return lists

    def owned_parameters(self) -> list[OwnedParameter]:
        """Returns every trainable tensor of this tower with its owners.

        Parameters of a feature are named `<tower>/features/<feature>/...`.
        """
        parameters = self.id_table.owned_parameters(self.name)
        for spec, encoder in zip(self.features, self.encoders, strict=True):
            for parameter in encoder.owned_parameters(self.name):
                leaf = parameter.name.rpartition("/")[2]
                name = f"{self.name}/features/{spec.name}/{leaf}"
                parameters.append(replace(parameter, name=name))
        if self.sequence is not None:
            parameters += self.sequence.owned_parameters(self.name)
        for layer in self.dense_layers:
            parameters += layer.owned_parameters(self.name)
        return parameters

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, without shared layers and data."""
        return (
            super().get_config()
            | self._settings
            | {
                "id_name": self.id_name,
                "features": [asdict(spec) for spec in self.features],
                "dimension": self.dimension,
                "copies": self.copies,
                "is_item": self.is_item,
                "id_dropout": self.id_dropout,
                "dropout": self.dropout,
                "history_dropout": self.history_dropout,
                "histories": list(self.histories),
            }
        )


def _check_names(features: Sequence[str], histories: Sequence[str]) -> None:
    """Refuses features that are named as what is known of a history.

    Raises:
      DataError: naming the first.
    """
    for name in features:
        if name.removesuffix("/time") in histories:
            raise DataError(
                "A feature of users should not have the name of the history of an "
                f"event. Received: {name!r}. Rename the column, or list it in "
                "data.ignore."
            )


def thinned(
    rows: tf.Tensor | tf.RaggedTensor, share: float, seed: tf.Tensor
) -> tf.Tensor | tf.RaggedTensor:
    """Leaves out a share of the rows of lists, drawn by a stateless generator.

    Args:
      rows: int [batch, length], padded; or ragged without padding.
      share: probability that a row is left out.
      seed: int [2].
    """
    ragged = isinstance(rows, tf.RaggedTensor)
    values = rows.flat_values if ragged else rows
    kept = tf.random.stateless_uniform(tf.shape(values), seed) >= share
    if not ragged:
        return tf.where(kept, rows, PADDING)
    return tf.RaggedTensor.from_value_rowids(
        tf.boolean_mask(values, kept),
        tf.boolean_mask(rows.value_rowids(), kept),
        nrows=rows.nrows(),
        validate=False,
    )


def build_layer(layer: tf.keras.layers.Layer, width: int) -> None:
    """Creates the weights of a layer for inputs of this width."""
    # Scopes keep variable names distinct, which weight files rely on.
    with tf.name_scope(layer.name):
        layer.build(tf.TensorShape([None, width]))
