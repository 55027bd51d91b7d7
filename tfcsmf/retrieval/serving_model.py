"""The exported model: raw requests to ranked item ids, in one SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import CSMF
from tfcsmf.data.inputs import QUERY_ID
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.retrieval.folding import FoldedTable, FoldedTower
from tfcsmf.retrieval.fusion import fuse
from tfcsmf.retrieval.indexes import ABSENT, Index, drop_excluded
from tfcsmf.retrieval.raw_inputs import (
    CandidateRawInputs,
    ItemTable,
    QueryRawInputs,
    argument_names,
)

# The score of a place that no candidate is left for: JSON has no infinity.
NO_SCORE = float(np.finfo(np.float32).min)

# Attributes the embedding signatures need; `refreshed` takes them over by name.
ENCODING_PARTS = ("query_inputs", "candidate_inputs", "query_tower", "candidate_tower")

Raw = Mapping[str, tf.Tensor]
Inputs = dict[str, dict[str, Any]]


class ServingModel(tf.Module):
    """Vocabularies, encoders, folded towers, index and fusion.

    Inputs are raw (see `signatures`); an unknown user, unknown items in a history
    and empty histories are legal. Missing values are "" for strings and NaN for
    numbers.

    Args:
      model: the trained model; its tables are shared, its kernels copied.
      log: vocabularies, encoders and objectives.
      index: of the catalogue in the order of `log.items`.
      scales: float [S], see `objective_scales`.
      weights: float [S], used where a request gives none.
      history_length: known items kept per history.
      calibration_queries: float32 [Q, S, d], divided by the scales; kept beside the
        model, so that its index can be built again for other items.
    """

    def __init__(
        self,
        model: CSMF,
        log: PreparedLog,
        index: Index,
        scales: np.ndarray,
        weights: Sequence[float],
        history_length: int,
        calibration_queries: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        stages = len(log.objectives)
        owner = model.block_owner.numpy()
        passes = np.arange(stages)[:, np.newaxis]
        own = owner == passes  # [S, d]
        seen = own if model.disjoint_blocks else owner <= passes
        self.index = index
        self.item_table = ItemTable(log.items)
        self.query_inputs = QueryRawInputs(
            log.users, self.item_table, log.history_events, history_length
        )
        self.candidate_inputs = CandidateRawInputs(log.items, self.item_table)
        self.candidate_tower = FoldedTower(model.candidate_tower, own)
        history_table: FoldedTable = self.candidate_tower.id_table
        self.query_tower = FoldedTower(model.query_tower, seen, history_table)
        self.scales = tf.constant(scales, tf.float32)
        self.default_weights = tf.constant(weights, tf.float32)
        self._objectives = tuple(log.objectives)
        self._blocks = [int(count) for count in own.sum(axis=1)]
        self._history_length = history_length
        # A function: TensorFlow would track and save the array.
        self.calibration_queries = lambda: calibration_queries

    def query_vectors(self, raw: Raw) -> tf.Tensor:
        """Returns u^(o) of every objective, not yet scaled, float [B, S, d]."""
        return tf.transpose(self.query_tower(self.query_inputs(raw)), [1, 0, 2])

    def embed_query(self, raw: Raw) -> dict[str, tf.Tensor]:
        """Returns the query vectors fused with the default weights, [B, d]."""
        vectors = fuse(self.query_vectors(raw), self.default_weights, self.scales)
        return {"vectors": vectors}

    def embed_objectives(self, raw: Raw) -> dict[str, tf.Tensor]:
        """Returns the query vectors divided by their scales, [B, S, d].

        Their sum weighted by a request is its fused query.
        """
        scales = self.scales[:, tf.newaxis]
        return {"vectors": self.query_vectors(raw) / scales}

    def embed_candidate(self, raw: Raw) -> dict[str, tf.Tensor]:
        """Returns candidate vectors, all blocks, [B, d]."""
        vectors = self.candidate_tower(self.candidate_inputs(raw))
        return {"vectors": tf.reduce_sum(vectors, axis=0)}

    def retrieve(
        self, raw: Raw, weights: tf.Tensor, exclude_item_ids: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Finds the best candidates of each query.

        Args:
          raw: query inputs by name.
          weights: float [B, S], or [S] for all queries.
          exclude_item_ids: string [B, E], padded with "".

        Returns:
          `item_ids`, string [B, k]; `scores`, float [B, k], fused, best first;
          `objective_scores`, float [B, k, S], calibrated: their sum weighted by
          `weights` is the score. Where fewer than k candidates are left: "",
          the lowest float, and zeros.
        """
        weights = tf.debugging.check_numerics(
            weights, "objective_weights should be finite numbers"
        )
        queries = self.query_vectors(raw)
        fused = fuse(queries, weights, self.scales)
        k = self.index.k
        if exclude_item_ids is None:
            scores, positions = self.index.search(fused, k)
        else:
            excluded = self.item_table.positions(exclude_item_ids)
            # Padding costs nothing: mostly, there is nothing to exclude.
            given = tf.reduce_sum(tf.cast(excluded != ABSENT, tf.int32), axis=1)
            most = tf.maximum(tf.reduce_max(given), 0)  # an empty batch has the lowest
            count = tf.minimum(k + most, self.index.size)
            found = self.index.search(fused, count)
            scores, positions = tf.cond(
                most > 0, lambda: drop_excluded(*found, excluded, k), lambda: found
            )
        found = positions != ABSENT
        vectors = self.index.take(positions)
        # [B, k, d] x [B, S, d] -> [B, k, S]
        scaled = tf.transpose(queries / self.scales[:, tf.newaxis], [0, 2, 1])
        by_objective = tf.matmul(vectors, scaled)
        return {
            "item_ids": self.item_table.names(positions),
            "scores": tf.where(found, scores, NO_SCORE),
            "objective_scores": tf.where(found[..., tf.newaxis], by_objective, 0.0),
        }

    def signatures(self) -> dict[str, Any]:
        """Returns the functions a SavedModel is called by.

        - `serving_default`: query inputs -> `item_ids`, `scores`,
          `objective_scores`;
        - `retrieve_weighted`: those and `objective_weights` float [B, S] (another
          shape is an error), `exclude_item_ids` string [B, E];
        - `embed_query`, `embed_candidate`: `vectors` float [B, d];
        - `embed_query_objectives`: `vectors` float [B, S, d].

        Query inputs are `user_id` string [B], `history_<event>` string [B, any],
        oldest first, padded with "" anywhere, of which the last known items
        count, and the user features: categorical string [B], numeric float [B],
        multi string [B, any], vector float [B, width]. Names that are no identifiers
        are changed by `argument_names`.
        """
        query, candidate = self.query_specs(), self.candidate_specs()
        objectives = len(self._objectives)
        request = {
            "objective_weights": tf.TensorSpec([None, objectives], tf.float32),
            "exclude_item_ids": tf.TensorSpec([None, None], tf.string),
        }

        def weighted(raw: Raw) -> dict[str, tf.Tensor]:
            batch = tf.shape(raw[QUERY_ID])[0]
            weights = _checked_weights(raw["objective_weights"], batch, objectives)
            return self.retrieve(raw, weights, raw["exclude_item_ids"])

        return {
            "serving_default": _signature(
                lambda raw: self.retrieve(raw, self.default_weights), query
            ),
            "retrieve_weighted": _signature(weighted, query, request),
            "embed_query": _signature(self.embed_query, query),
            "embed_query_objectives": _signature(self.embed_objectives, query),
            "embed_candidate": _signature(self.embed_candidate, candidate),
        }

    def query_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every query input."""
        return self.query_inputs.specs()

    def candidate_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every candidate input."""
        return self.candidate_inputs.specs()

    def describe(self) -> dict[str, Any]:
        """Returns the contents of `cascade.json`."""
        return {
            "format": 1,
            "objectives": list(self._objectives),
            "default_weights": self.default_weights.numpy().tolist(),
            "scales": self.scales.numpy().tolist(),
            "dimension": sum(self._blocks),
            "blocks": list(self._blocks),
            "k": self.index.k,
            "catalogue": self.index.size,
            "history_length": self._history_length,
            "query_inputs": _described(self.query_inputs.describe()),
            "candidate_inputs": _described(self.candidate_inputs.describe()),
            "index": self.index.describe(),
        }


def _checked_weights(weights: tf.Tensor, batch: tf.Tensor, count: int) -> tf.Tensor:
    """Refuses any shape but [batch, count]; [B, 1] would be taken for all objectives.

    Neither Python nor a server holds a request to the shapes of its signature. They
    are hidden here, or the check would be found true while tracing and left out.
    """
    weights = tf.raw_ops.PlaceholderWithDefault(input=weights, shape=None)
    received = tf.shape(weights)
    rule = (
        "objective_weights should have the shape [B, S]: a row per query (B), in it a "
        f"weight per objective (S = {count}), in the order of `objectives`. Expected "
        "and received shape:"
    )
    # Padded, because shapes of different length cannot be compared.
    padded = tf.concat([received, [-1, -1, -1]], axis=0)[:3]
    right = tf.reduce_all(tf.equal(padded, [batch, count, -1]))
    check = tf.debugging.Assert(right, [rule, [batch, count], received])
    with tf.control_dependencies([check]):
        return tf.ensure_shape(weights, [None, count])


def _described(inputs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = argument_names(list(inputs))
    return {name: {"argument": names[name]} | inputs[name] for name in inputs}


def _signature(
    function: Callable[[Raw], dict[str, tf.Tensor]],
    specs: dict[str, tf.TensorSpec],
    request: dict[str, tf.TensorSpec] | None = None,
) -> Any:
    """Traces a function of raw inputs under legal argument names."""
    request = request or {}
    names = argument_names(list(specs)) | {name: name for name in request}
    arguments = {
        names[name]: tf.TensorSpec(spec.shape, spec.dtype, name=names[name])
        for name, spec in (specs | request).items()
    }

    @tf.function(autograph=False)
    def call(**arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        return function({name: arguments[names[name]] for name in names})

    return call.get_concrete_function(**arguments)
