"""Vectors of whole catalogues and evaluation sets, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import CSMF, Inputs
from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs, QueryInputs
from tfcsmf.data.prepared import EvaluationSet, Histories, PreparedLog

Compiled = Callable[..., tf.Tensor]

_BATCH = 4096
_SEQUENCES = 256  # queries at once with a sequence encoder, whose attention is large


class Encoder:
    """Runs a model over a prepared log.

    Args:
      model: its current parameters are used at every call.
      log: users, catalogue and histories.
      history_length: last events kept per history.
      opening: by history event, the first stage that sees it, which a pass in training
        cannot tell from its weights; default all.
    """

    def __init__(
        self,
        model: CSMF,
        log: PreparedLog,
        history_length: int,
        opening: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.log = log
        self.history_length = history_length
        self._candidates = EntityInputs(log.items, CANDIDATE_ID)
        self._opening = opening
        # By identity of the histories, which the log keeps alive.
        self._query_inputs: dict[tuple[int, int | None], QueryInputs] = {}
        self._compiled: dict[tuple[Any, ...], Compiled] = {}

    def candidates(
        self, stages: int, positions: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns vectors on the blocks of the first `stages` stages, [n, d].

        Args:
          stages: frozen stages, >= 1.
          positions: catalogue positions; all of them by default.
        """
        return self._catalogue(
            ("frozen", stages),
            lambda inputs: self.model.all_blocks(inputs, stages),
            positions,
        )

    def training_candidates(self, stage: int) -> np.ndarray:
        """Returns the block in training, zero elsewhere, float32 [C, d]."""
        return self._catalogue(
            ("training", stage),
            lambda inputs: self.model.candidate_vectors(inputs, stage, training=True),
        )

    def queries(
        self,
        evaluation_set: EvaluationSet,
        histories: Histories,
        stage: int,
        training: bool = False,
    ) -> np.ndarray:
        """Returns u^(stage) of every query of an evaluation set, float32 [q, d]."""
        return self.query_vectors(
            evaluation_set.users, evaluation_set.history_end, histories, stage, training
        )

    def query_vectors(
        self,
        users: np.ndarray,
        history_end: np.ndarray,
        histories: Histories,
        stage: int,
        training: bool = False,
    ) -> np.ndarray:
        """Returns u^(stage) of users at given points of their histories, [n, d]."""
        # Tables of offsets and items are uploaded once per set of histories.
        seen = None
        if training and self._opening is not None:
            seen = [event for event, first in self._opening.items() if first <= stage]
        used = (id(histories), None if seen is None else stage)
        if used not in self._query_inputs:
            self._query_inputs[used] = QueryInputs(
                self.log.users, histories, self.history_length, seen
            )
        make = self._query_inputs[used]

        def build() -> Compiled:
            @tf.function(
                input_signature=[
                    tf.TensorSpec([None], tf.int32),
                    tf.TensorSpec([None, history_end.shape[1]], tf.int64),
                ]
            )
            def encode(users: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
                return self.model.query_vectors(make(users, ends), stage, training)

            return encode

        encode = self._compile(("query", id(histories), stage, training), build)
        vectors = np.zeros((len(users), self.model.dimension), np.float32)
        size = _BATCH if self.model.query_tower.sequence is None else _SEQUENCES
        for start in range(0, len(users), size):
            part = slice(start, start + size)
            vectors[part] = encode(
                tf.constant(users[part], tf.int32),
                tf.constant(history_end[part], tf.int64),
            )
        return vectors

    def _compile(self, key: tuple[Any, ...], build: Callable[[], Compiled]) -> Compiled:
        """Returns the function of a key, traced once for the life of the encoder."""
        if key not in self._compiled:
            self._compiled[key] = build()
        return self._compiled[key]

    def _catalogue(
        self,
        key: tuple[Any, ...],
        vectors_of: Callable[[Inputs], tf.Tensor],
        positions: np.ndarray | None = None,
    ) -> np.ndarray:
        def build() -> Compiled:
            @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
            def encode(positions: tf.Tensor) -> tf.Tensor:
                return vectors_of(self._candidates(positions))

            return encode

        encode = self._compile(key, build)
        if positions is None:
            positions = np.arange(self.log.items.size)
        vectors = np.zeros((len(positions), self.model.dimension), np.float32)
        for start in range(0, len(positions), _BATCH):
            part = slice(start, start + _BATCH)
            vectors[part] = encode(tf.constant(positions[part], tf.int32))
        return vectors
