"""The exported model: raw requests to ranked item ids, in one SavedModel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import CSMF
from tfcsmf.data.inputs import QUERY_ID
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.retrieval.exact_index import ABSENT, Index, drop_excluded
from tfcsmf.retrieval.filters import ItemFilters, search_passing
from tfcsmf.retrieval.fusion import fuse
from tfcsmf.retrieval.raw_inputs import (
    CandidateRawInputs,
    ItemTable,
    QueryRawInputs,
    argument_names,
)
from tfcsmf.retrieval.served import Served, serve_cascade
from tfcsmf.retrieval.signatures import (
    Raw,
    checked_k,
    checked_weights,
    filter_name,
    trace,
)
from tfcsmf.towers import block_slack, bounded

# The score of a place that no candidate is left for: JSON has no infinity.
NO_SCORE = float(np.finfo(np.float32).min)

# Attributes the embedding signatures need; `refreshed` takes them over by name.
ENCODING_PARTS = ("query_inputs", "candidate_inputs", "query_tower", "candidate_tower")

Found = tuple[tf.Tensor, tf.Tensor]  # scores and positions, [B, k]


class ServingModel(tf.Module):
    """Vocabularies, encoders, folded towers, index and fusion.

    Inputs are raw (see `signatures`); an unknown user, unknown items in a history
    and empty histories are legal. Missing values are "" for strings and NaN for
    numbers.

    Args:
      model: a trained cascade, or what is to be served of any model.
      log: vocabularies and encoders.
      index: of the catalogue in the order of `log.items`.
      scales: float [S], see `objective_scales`.
      weights: float [S], used where a request gives none.
      history_length: known items kept per history.
      max_k: most results a request may ask for, where the catalogue has as many.
      calibration_queries: float32 [Q, S, d], divided by the scales; kept beside the
        model, so that its index can be built again for other items.
    """

    def __init__(
        self,
        model: CSMF | Served,
        log: PreparedLog,
        index: Index,
        scales: np.ndarray,
        weights: Sequence[float],
        history_length: int,
        max_k: int,
        calibration_queries: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, CSMF):
            model = serve_cascade(model, log.objectives)
        self.index = index
        self.item_table = ItemTable(log.items)
        self.query_inputs = QueryRawInputs(
            log.users,
            self.item_table,
            log.history_events,
            history_length,
            model.with_times,
        )
        self.candidate_inputs = CandidateRawInputs(log.items, self.item_table)
        self.candidate_tower = model.candidate_tower
        self.query_tower = model.query_tower
        self._normalize = model.normalize
        self.scales = tf.constant(scales, tf.float32)
        self.default_weights = tf.constant(weights, tf.float32)
        self._objectives = model.objectives
        self._blocks = list(model.blocks)
        self._history_length = history_length
        self.filters = ItemFilters.of_table(log.items)
        self._max_k = max_k
        # A function: TensorFlow would track and save the array.
        self.calibration_queries = lambda: calibration_queries

    def query_vectors(self, raw: Raw) -> tf.Tensor:
        """Returns u^(o) of every objective, not yet scaled, float [B, S, d]."""
        vectors = self.query_tower(self.query_inputs(raw))
        vectors = bounded(vectors) if self._normalize else vectors
        return tf.transpose(vectors, [1, 0, 2])

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
        if self._normalize:
            slack = [block_slack(stage) for stage in range(len(self._objectives))]
            vectors = bounded(vectors, tf.reshape(slack, [-1, 1, 1]))
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
        k = self.index.k

        def search(fused: tf.Tensor) -> Found:
            if exclude_item_ids is None:
                return self.index.search(fused, k)
            excluded = self.item_table.positions(exclude_item_ids)
            return self._search(fused, excluded, k)

        return self._answer(raw, weights, search)

    def retrieve_filtered(
        self,
        raw: Raw,
        weights: tf.Tensor,
        exclude_item_ids: tf.Tensor,
        k: tf.Tensor,
        chosen: Mapping[str, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Finds the best of the candidates that pass a filter.

        Args:
          raw: query inputs by name.
          weights: float [B, S].
          exclude_item_ids: string [B, E], padded with "".
          k: int32 [B], results per query; 0 for those of the export. The answer is as
            wide as the largest; shorter ones end with empty places.
          chosen: allowed values by attribute, string [B, any], padded with ""; a
            candidate passes if it has one of them, of every attribute that is given.

        Returns:
          See `retrieve`.
        """
        limits = tf.where(tf.equal(k, 0), self.index.k, k)  # [B]
        most = tf.maximum(tf.reduce_max(limits), 1)  # an empty batch has the lowest
        excluded = self.item_table.positions(exclude_item_ids)
        codes = self.filters.codes(chosen)

        def search(fused: tf.Tensor) -> Found:
            def filtered() -> Found:
                return self._search_passing(fused, excluded, codes, most)

            def unfiltered() -> Found:
                # Calibrated to fewer results, it reads as much more.
                wide = tf.maximum(tf.cast(most / self.index.k, tf.float32), 1.0)
                return self._search(fused, excluded, most, wide)

            used = [tf.reduce_any(own != 0) for own in codes]
            if not used:
                return unfiltered()
            return tf.cond(tf.reduce_any(tf.stack(used)), filtered, unfiltered)

        def limited(fused: tf.Tensor) -> Found:
            scores, positions = search(fused)
            places = tf.range(tf.shape(positions)[1])
            return scores, tf.where(places < limits[:, tf.newaxis], positions, ABSENT)

        return self._answer(raw, weights, limited)

    def _search(
        self,
        fused: tf.Tensor,
        excluded: tf.Tensor,
        k: tf.Tensor | int,
        widening: tf.Tensor | float = 1.0,
    ) -> Found:
        """Searches past what is excluded, positions int32 [B, E]."""
        # Padding costs nothing: mostly, there is nothing to exclude.
        given = tf.reduce_sum(tf.cast(excluded != ABSENT, tf.int32), axis=1)
        most = tf.maximum(tf.reduce_max(given), 0)  # an empty batch has the lowest
        count = tf.minimum(k + most, self.index.size)
        found = self.index.search(fused, count, None, widening)
        return tf.cond(
            most > 0, lambda: drop_excluded(*found, excluded, k), lambda: found
        )

    def _search_passing(
        self,
        fused: tf.Tensor,
        excluded: tf.Tensor,
        codes: Sequence[tf.Tensor],
        k: tf.Tensor,
    ) -> Found:
        """Searches row by row, for each has a filter of its own."""

        def search(row: tuple[tf.Tensor, ...]) -> Found:
            query, out, *own = row
            passing = self.filters.passing(own)
            out = tf.boolean_mask(out, out != ABSENT)[:, tf.newaxis]
            none = tf.zeros_like(out[:, 0], tf.bool)
            passing = tf.tensor_scatter_nd_update(passing, out, none)
            return search_passing(self.index, query, passing, k)

        return tf.map_fn(
            search,
            (fused, excluded, *codes),
            fn_output_signature=(
                tf.TensorSpec([None], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ),
            parallel_iterations=1,  # memory
        )

    def _answer(
        self, raw: Raw, weights: tf.Tensor, search: Callable[[tf.Tensor], Found]
    ) -> dict[str, tf.Tensor]:
        """Fuses, searches and scores by objective; see `retrieve`."""
        weights = tf.debugging.check_numerics(
            weights, "objective_weights should be finite numbers"
        )
        queries = self.query_vectors(raw)
        scores, positions = search(fuse(queries, weights, self.scales))
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
        - `retrieve_filtered`: those, `k` int32 [B], and `filter_<attribute>` string
          [B, any] of every categorical item attribute, see there;
        - `embed_query`, `embed_candidate`: `vectors` float [B, d];
        - `embed_query_objectives`: `vectors` float [B, S, d].

        Query inputs are `user_id` string [B], `history_<event>` string [B, any],
        oldest first, padded with "" anywhere, of which the last known items
        count, where the model needs them their times, int64 [B, any] (`Served`), and
        the user features: categorical string [B], numeric float [B],
        multi string [B, any], vector float [B, width]. Names that are no identifiers
        are changed by `argument_names`.
        """
        query, candidate = self.query_specs(), self.candidate_specs()
        filters = {
            filter_name(name): tf.TensorSpec([None, None], tf.string)
            for name in self.filters.names
        }
        objectives = len(self._objectives)
        request = {
            "objective_weights": tf.TensorSpec([None, objectives], tf.float32),
            "exclude_item_ids": tf.TensorSpec([None, None], tf.string),
        }

        def weighted(raw: Raw) -> dict[str, tf.Tensor]:
            batch = tf.shape(raw[QUERY_ID])[0]
            weights = checked_weights(raw["objective_weights"], batch, objectives)
            return self.retrieve(raw, weights, raw["exclude_item_ids"])

        def filtered(raw: Raw) -> dict[str, tf.Tensor]:
            batch = tf.shape(raw[QUERY_ID])[0]
            weights = checked_weights(raw["objective_weights"], batch, objectives)
            k = checked_k(raw["k"], batch, self.max_k)
            chosen = {name: raw[filter_name(name)] for name in self.filters.names}
            return self.retrieve_filtered(
                raw, weights, raw["exclude_item_ids"], k, chosen
            )

        return {
            "serving_default": trace(
                lambda raw: self.retrieve(raw, self.default_weights), query
            ),
            "retrieve_weighted": trace(weighted, query, request),
            "retrieve_filtered": trace(
                filtered,
                query | filters,
                request | {"k": tf.TensorSpec([None], tf.int32)},
            ),
            "embed_query": trace(self.embed_query, query),
            "embed_query_objectives": trace(self.embed_objectives, query),
            "embed_candidate": trace(self.embed_candidate, candidate),
        }

    def query_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every query input."""
        return self.query_inputs.specs()

    def candidate_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every candidate input."""
        return self.candidate_inputs.specs()

    @property
    def max_k(self) -> int:
        """Most results of a request."""
        return min(max(self._max_k, self.index.k), self.index.size)

    def describe_filters(self) -> dict[str, dict[str, Any]]:
        """Returns argument and values of every attribute to filter by."""
        filters = self.filters.describe()
        names = argument_names([*self.query_specs(), *map(filter_name, filters)])
        return {
            name: {"argument": names[filter_name(name)]} | about
            for name, about in filters.items()
        }

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
            "max_k": self.max_k,
            "catalogue": self.index.size,
            "history_length": self._history_length,
            "query_inputs": _described(self.query_inputs.describe()),
            "candidate_inputs": _described(self.candidate_inputs.describe()),
            "filters": self.describe_filters(),
            "index": self.index.describe(),
        }


def _described(inputs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = argument_names(list(inputs))
    return {name: {"argument": names[name]} | inputs[name] for name in inputs}
