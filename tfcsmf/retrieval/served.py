"""What a serving model needs of a trained one, whatever kind that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import CSMF
from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs, history_name, time_name
from tfcsmf.data.merged_lists import merge_lists
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.heterrec.model import SequenceModel
from tfcsmf.heterrec.query_sequence import encode_last
from tfcsmf.retrieval.folding import (
    FoldedTable,
    FoldedTower,
    Inputs,
    ItemFeatures,
    fold_history_features,
)
from tfcsmf.retrieval.folding_sequences import FoldedLayer, fold_sequence


@dataclass(frozen=True)
class Served:
    """The parts of a trained model that requests go through.

    Attributes:
      query_tower: encoded query inputs to float [S, n, d].
      candidate_tower: encoded candidate inputs to float [S, n, d], whose sum over S is
        the vector.
      objectives: names, S of them.
      blocks: output dimensions of each.
      normalize: lengths are still to be bounded.
      with_times: encoded query inputs hold the times of histories.
    """

    query_tower: Any
    candidate_tower: Any
    objectives: tuple[str, ...]
    blocks: tuple[int, ...]
    normalize: bool = False
    with_times: bool = False


def serve_cascade(model: CSMF, objectives: Sequence[str]) -> Served:
    """Folds the masks of a cascade; tables are shared, kernels copied.

    Args:
      model: the trained model.
      objectives: in cascade order.
    """
    stages = range(len(objectives))
    owner = model.block_owner.numpy()
    passes = np.arange(len(objectives))[:, np.newaxis]
    own = owner == passes  # [S, d]
    seen = own if model.disjoint_blocks else owner <= passes
    candidate = FoldedTower(model.candidate_tower, own)
    history_table: FoldedTable = candidate.id_table
    sequence = fold_sequence(model.query_tower.sequence, candidate, stages)
    features = fold_history_features(model.query_tower, candidate)
    query = FoldedTower(
        model.query_tower, seen, history_table, None, features, sequence
    )
    blocks = tuple(int(count) for count in own.sum(axis=1))
    timed = sequence is not None and model.query_tower.sequence.with_times
    return Served(query, candidate, tuple(objectives), blocks, model.normalize, timed)


def serve_sequences(model: SequenceModel, log: PreparedLog, length: int) -> Served:
    """Makes a sequence model answer raw histories; its one objective has all of d.

    Requests say when things happened where it cannot be done without: to order the
    histories of several events, or for time gaps.

    Args:
      model: the trained model.
      log: gives features, objectives and history events.
      length: last events that are read.
    """
    settings = getattr(model.encoder, "settings", None)
    gaps = settings is not None and settings.num_gaps > 0
    timed = gaps or len(log.history_events) > 1
    parts = _Parts(model, log)
    return Served(
        SequenceQuery(parts, log.history_events, length, timed),
        SequenceCandidate(parts),
        (" + ".join(log.objectives),),
        (model.dimension,),
        with_times=timed,
    )


class _Parts(tf.Module):
    """The layers of a sequence model, and the features of trained items."""

    def __init__(self, model: SequenceModel, log: PreparedLog) -> None:
        super().__init__()
        features = [spec.name for spec in model.tokens.features]
        inputs = EntityInputs(log.items, CANDIDATE_ID)
        self.items = ItemFeatures(inputs, features, log.items.trained)
        self.tokens = FoldedLayer(model.tokens, None)
        self.encoder = FoldedLayer(model.encoder, None)
        self.candidate_side = FoldedLayer(model.candidate_side, None)
        self.heads = [FoldedLayer(head, None) for head in model.heads[:1]]


class SequenceQuery(tf.Module):
    """Encoded histories to the query vector of a sequence model."""

    def __init__(
        self, parts: _Parts, events: Sequence[str], length: int, timed: bool
    ) -> None:
        super().__init__()
        self.parts = parts
        self._events, self._length, self._timed = tuple(events), length, timed

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        """Returns the vectors, float [1, n, d]."""
        times = None
        if self._timed:
            times = [inputs[time_name(event)] for event in self._events]
        lists = [inputs[history_name(event)] for event in self._events]
        merged = merge_lists(lists, self._length, times)
        rows, places = tf.unique(tf.reshape(merged.rows, [-1]))
        parts = self.parts
        tokens = parts.tokens.layer()({CANDIDATE_ID: rows} | parts.items(rows))
        vectors = encode_last(parts.encoder.layer(), tokens, places, merged)
        for head in parts.heads:
            vectors = head.layer()(vectors)
        return vectors[tf.newaxis]


class SequenceCandidate(tf.Module):
    """Encoded items to the vectors of a sequence model."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.parts = parts

    def __call__(self, inputs: Inputs) -> tf.Tensor:
        """Returns the vectors, float [1, n, d]."""
        tokens = self.parts.tokens.layer()(inputs)
        return self.parts.candidate_side.layer()(tokens)[0][tf.newaxis]
