"""Vectors of whole catalogues and of queries, in batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs
from tfcsmf.data.prepared import EvaluationSet, Histories, PreparedLog
from tfcsmf.data.sequence_batches import PaddedSequences
from tfcsmf.data.sequences import merge_histories, merged_end
from tfcsmf.heterrec.encoder import History
from tfcsmf.heterrec.model import SequenceModel

_ITEMS_AT_ONCE = 8192
_QUERIES_AT_ONCE = 512
_POSITIONS = tf.TensorSpec([None], tf.int32)
_ENTRIES = tf.TensorSpec([None], tf.int64)


class SequenceEncoder:
    """Runs a sequence model over a prepared log.

    Args:
      model: its current parameters are used at every call.
      log: catalogue and histories.
      length: last events that are read.
    """

    def __init__(self, model: SequenceModel, log: PreparedLog, length: int) -> None:
        self.model = model
        self.log = log
        self.length = length
        self._inputs = EntityInputs(log.items, CANDIDATE_ID)
        # By identity of the histories, which the log keeps alive.
        self._compiled: dict[int, tuple[np.ndarray, Callable[..., tf.Tensor]]] = {}
        self._items = tf.function(self._encode_items, input_signature=[_POSITIONS])
        shape = (log.items.size, len(model.tokens.names), model.dimension)
        self._tokens = tf.Variable(tf.zeros(shape), trainable=False)

    def _encode_items(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        tokens = self.model.item_tokens(self._inputs(positions))
        return tokens, self.model.candidate_vectors(tokens)

    def candidates(self) -> np.ndarray:
        """Returns the vectors of the catalogue, float32 [C, d].

        Keeps the items' tokens for the queries that follow.
        """
        size = self.log.items.size
        vectors = np.zeros((size, self.model.dimension), np.float32)
        for start in range(0, size, _ITEMS_AT_ONCE):
            part = slice(start, min(start + _ITEMS_AT_ONCE, size))
            tokens, own = self._items(tf.range(part.start, part.stop))
            self._tokens[part].assign(tokens)
            vectors[part] = own
        return vectors

    def queries(self, part: EvaluationSet, histories: Histories) -> np.ndarray:
        """Returns the vectors of an evaluation set's queries, float32 [q, d].

        Args:
          part: the queries.
          histories: what its `history_end` points into.
        """
        return self.query_vectors(part.users, part.history_end, histories)

    def query_vectors(
        self, users: np.ndarray, history_end: np.ndarray, histories: Histories
    ) -> np.ndarray:
        """Returns the vectors of users at points of their histories, float32 [n, d]."""
        if id(histories) not in self._compiled:
            self._compiled[id(histories)] = self._compile(histories)
        offsets, encode = self._compiled[id(histories)]
        ends = merged_end(history_end)
        first = np.maximum(offsets[users], ends - self.length)
        lengths = ends - first
        vectors = np.zeros((len(ends), self.model.dimension), np.float32)
        # Of like length together, so that little is padding.
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _QUERIES_AT_ONCE):
            rows = order[start : start + _QUERIES_AT_ONCE]
            vectors[rows] = encode(tf.constant(first[rows]), tf.constant(lengths[rows]))
        return vectors

    def _compile(
        self, histories: Histories
    ) -> tuple[np.ndarray, Callable[..., tf.Tensor]]:
        sequences = merge_histories(histories)
        padded = PaddedSequences(sequences)

        @tf.function(input_signature=[_ENTRIES, _ENTRIES])
        def encode(first: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
            parts = padded(first, lengths)
            tokens = tf.gather(self._tokens, parts["items"])
            history = History(tokens, parts["mask"], parts["events"], parts["gaps"])
            return self.model.query_vectors(history)

        return sequences.offsets, encode
