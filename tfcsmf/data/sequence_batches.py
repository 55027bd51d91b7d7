"""Training batches of whole sequences: every place of every sequence is an example.

Sequences of like length are batched together, and a batch holds a fixed number of
events, not of sequences, so that little of it is padding and its memory is bounded.
Batches are pure functions of (seed, epoch, number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs
from tfcsmf.data.lists import distinct_sorted
from tfcsmf.data.prepared import EntityTable, Histories, PreparedLog
from tfcsmf.data.rows import PADDING
from tfcsmf.data.sequences import (
    Sequences,
    merge_histories,
    only_items,
    value_codes,
)
from tfcsmf.errors import DataError

Batch = dict[str, Any]

# Batches whose sequences are sorted by length together; more pad less, and mix less.
_SORTED_TOGETHER = 32
_UNIFORM, _DROPOUT = range(2)


class PaddedSequences:
    """Takes parts of sequences, left-padded to the longest of them.

    Args:
      sequences: of all users.
    """

    def __init__(self, sequences: Sequences) -> None:
        def constant(values: np.ndarray) -> tf.Tensor:
            # A log without events still needs something to gather from.
            return tf.constant(values if len(values) else np.zeros(1, np.int32))

        self._columns = {
            "items": constant(sequences.items),
            "events": constant(sequences.events),
            "gaps": constant(sequences.gaps),
        }

    def __call__(self, first: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns entries `first` to `first + lengths` of every row.

        Args:
          first: int64 [n], absolute begins.
          lengths: int64 [n], >= 0.

        Returns:
          `items` (catalogue positions), `events` and `gaps` (rows), int32 [n, width],
          `PADDING` in front, and `mask`, bool [n, width]; width >= 1.
        """
        width = tf.maximum(tf.reduce_max(lengths), 1)
        column = tf.range(width)[tf.newaxis, :] - (width - lengths)[:, tf.newaxis]
        mask = column >= 0
        slots = tf.where(mask, first[:, tf.newaxis] + column, 0)
        padded = {
            name: tf.where(mask, tf.gather(values, slots), PADDING)
            for name, values in self._columns.items()
        }
        return padded | {"mask": mask}


@dataclass(frozen=True)
class SequenceSettings:
    """How batches of sequences are made.

    Attributes:
      length: T, most places of a sequence; its last T + 1 events are used.
      batch_events: events per batch, about.
      uniform_negatives: uniform draws from the catalogue beside the items of the batch;
        `None` takes all trained items as candidates, which needs no correction.
      seed: of the run.
    """

    length: int
    batch_events: int
    uniform_negatives: int | None
    seed: int


class SequenceBatches:
    """Batches of the training sequences of a log.

    A batch has, for n sequences of at most N events and P distinct candidates:

    - `items`: int32 [n, N], candidate numbers, left-padded with 0; the last event is
      only a target;
    - `events`, `gaps`: int32 [n, N], rows; `lengths`: int32 [n], events of each;
    - `candidate`: inputs of the candidates, by name, [P, ...];
    - `values`: int32 [P, M], what `value_codes` gives for them;
    - `column_bias`: float [P, M], minus the logarithm of the chance that the batch
      holds the candidate (or any with this value of the feature);
    - `seed`: int32 [2].

    Args:
      log: the prepared log.
      settings: see `SequenceSettings`.
      features: names of the item features that are wanted; default all.
      histories: what is trained on, default those of training. Items without training
        events are left out of others.

    Raises:
      DataError: if no user has two events.
    """

    def __init__(
        self,
        log: PreparedLog,
        settings: SequenceSettings,
        features: Sequence[str] | None = None,
        histories: Histories | None = None,
    ) -> None:
        self.settings = settings
        merged = merge_histories(histories or log.train_histories)
        self.sequences = only_items(merged, log.items.trained)
        ends = self.sequences.offsets[1:]
        lengths = np.minimum(self.sequences.lengths, settings.length + 1)
        kept = lengths >= 2
        if not kept.any():
            raise DataError(
                "Sequences need users with two or more training events. Received none. "
                "Check data.history_events and the split."
            )
        self._first = (ends - lengths)[kept]
        self._lengths = lengths[kept]
        self.num_items = log.items.trained
        table = _with_features(log.items, features)
        self._inputs = EntityInputs(table, CANDIDATE_ID)
        self._padded = PaddedSequences(self.sequences)
        self.values = value_codes(table, table.encoders)
        pairs = self._distinct_pairs()
        shares = self._value_shares(pairs[1])
        # Tensors, not arrays: a traced function would copy arrays into its graph.
        self._draws = tf.constant(np.bincount(pairs[0], minlength=len(self._lengths)))
        self._drawn, self._uniform = (tf.constant(part) for part in shares)
        self._firsts, self._sizes = tf.constant(self._first), tf.constant(self._lengths)
        self._codes = tf.constant(self.values)

    @property
    def num_sequences(self) -> int:
        """Sequences that are trained on."""
        return len(self._lengths)

    @property
    def num_examples(self) -> int:
        """Places with a next item, over all sequences."""
        return int((self._lengths - 1).sum())

    def _distinct_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns every (sequence, item) that occurs, int64 [n] each.

        A user who viewed, carted and bought an item draws it into a batch once.
        """
        rows = np.repeat(np.arange(len(self._lengths)), self._lengths)
        before = np.cumsum(self._lengths) - self._lengths
        slots = np.arange(len(rows)) - before[rows] + self._first[rows]
        width = len(self.values)
        keys = distinct_sorted(rows * width + self.sequences.items[slots])
        return keys // width, keys % width

    def _value_shares(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of draws and of trained items with each item's value, [C, M] each."""
        drawn = np.bincount(items, minlength=len(self.values))
        ones = np.arange(len(self.values)) < self.num_items
        result = []
        for counts in (drawn, ones):
            columns = []
            for codes in self.values.T:
                mass = np.bincount(codes + 1, counts)[codes + 1]  # -1 is missing
                columns.append(mass / max(counts.sum(), 1))
            # Below 1, so that the logarithm of the rest is finite.
            result.append(np.minimum(np.stack(columns, axis=1), 1 - 1e-6))
        return result[0].astype(np.float32), result[1].astype(np.float32)

    def schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order of the sequences in an epoch and where batches begin.

        Returns:
          int64 [sequences], and int64 [batches + 1] offsets into it.
        """
        rng = np.random.default_rng([self.settings.seed, epoch])
        order = rng.permutation(self.num_sequences)
        size = self.settings.batch_events
        pool = np.cumsum(self._lengths[order]) // (size * _SORTED_TOGETHER)
        # Up and down by turns: neighbours stay alike where two pools meet.
        turn = np.where(pool % 2 == 0, 1, -1)
        order = order[np.lexsort((turn * self._lengths[order], pool))]
        lengths = self._lengths[order]
        batch = (np.cumsum(lengths) - lengths) // size
        begins = np.flatnonzero(np.diff(batch, prepend=-1))
        parts = np.split(order, begins[1:])
        parts = [parts[number] for number in rng.permutation(len(parts))]
        sizes = [len(part) for part in parts]
        return np.concatenate(parts), np.concatenate([[0], np.cumsum(sizes)])

    @property
    def element_spec(self) -> Any:
        """Types and shapes of a batch, whatever its contents."""
        return self.dataset(0).element_spec

    def dataset(self, epoch: int, first: int = 0) -> tf.data.Dataset:
        """Returns the batches of one epoch from number `first` on."""
        order, begins = (tf.constant(part, tf.int64) for part in self.schedule(epoch))

        def make(number: tf.Tensor) -> Batch:
            rows = order[begins[number] : begins[number + 1]]
            seed = tf.stack([self.settings.seed % (2**31), epoch])
            seed = tf.random.experimental.stateless_fold_in(seed, number)
            return self._assemble(rows, tf.cast(seed, tf.int32))

        numbers = tf.data.Dataset.range(first, len(begins) - 1)
        return numbers.map(
            make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).prefetch(2)

    def _assemble(self, rows: tf.Tensor, seed: tf.Tensor) -> Batch:
        lengths = tf.gather(self._sizes, rows)
        padded = self._padded(tf.gather(self._firsts, rows), lengths)
        mask = padded.pop("mask")
        if self.settings.uniform_negatives is None:
            block = tf.range(self.num_items)
            bias = tf.zeros([self.num_items, self.values.shape[1]])
        else:
            block, numbers = self._distinct(padded["items"], mask, seed)
            padded["items"] = tf.where(mask, numbers, 0)
            bias = self._bias(block, tf.reduce_sum(tf.gather(self._draws, rows)))
        return padded | {
            "lengths": tf.cast(lengths, tf.int32),
            "candidate": self._inputs(block),
            "values": tf.gather(self._codes, block),
            "column_bias": bias,
            "seed": tf.random.experimental.stateless_fold_in(seed, _DROPOUT),
        }

    def _distinct(
        self, items: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the distinct items of a batch with uniform ones, and numbers."""
        uniform = tf.random.stateless_uniform(
            [self.settings.uniform_negatives],
            tf.random.experimental.stateless_fold_in(seed, _UNIFORM),
            maxval=self.num_items,
            dtype=tf.int32,
        )
        # Padding must not add a candidate: the last column has none.
        filled = tf.where(mask, items, items[:, -1:])
        both = tf.concat([tf.reshape(filled, [-1]), uniform], axis=0)
        block, numbers = tf.unique(both)
        return block, tf.reshape(numbers[: tf.size(items)], tf.shape(items))

    def _bias(self, block: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Returns minus the logarithm of the chance to be in the batch, [P, M].

        Draws are taken for independent, which those of one user are not.
        """
        drawn, uniform = tf.gather(self._drawn, block), tf.gather(self._uniform, block)
        missed = tf.cast(draws, tf.float32) * tf.math.log1p(-drawn)
        missed += float(self.settings.uniform_negatives or 0) * tf.math.log1p(-uniform)
        return -tf.math.log(-tf.math.expm1(missed))


def _with_features(table: EntityTable, names: Sequence[str] | None) -> EntityTable:
    """Returns a table with some of its features."""
    if names is None:
        return table
    encoders = tuple(e for e in table.encoders if e.name in names)
    features = {e.name: table.features[e.name] for e in encoders}
    return replace(table, encoders=encoders, features=features)
