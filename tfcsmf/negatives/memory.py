"""Cross-batch memory: candidates of the batches before, as further negatives."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tfcsmf.data.known_pairs import known_pairs

_EMPTY = -1


@dataclass(frozen=True)
class Columns:
    """The candidates that the rows of a batch are scored against.

    Attributes:
      vectors: float [columns, d].
      items: int32 [columns], catalogue positions; may repeat.
      counts: float32 [columns], how many draws of a negative each stands for.
      excluded: int32 [m, 2] of (row, column), sorted by row: no negatives.
    """

    vectors: tf.Tensor
    items: tf.Tensor
    counts: tf.Tensor
    excluded: tf.Tensor


class CandidateMemory:
    """The positives of the last batches with the vectors they had then.

    The vectors are a few steps old and get no gradient. A positive that several rows
    had is kept as often, so that a place of the memory is a draw by popularity, as a
    positive of the batch is.

    What the loss pushes away from a query is thus in part what cannot move, while
    every positive is pulled as before: candidates would drift towards the mean query
    (docs/esans.md has what that costs). So the batch's negatives are pushed for the
    memory as well (our reading; the paper does not say): they are draws from the same
    distribution, and pushed in expectation as the full softmax would push them.

    Args:
      size: candidates kept, the newest first.
      dimension: of their vectors.
      known: lists of known positives; see `tfcsmf.data.known_pairs.known_lists`.

    Attributes:
      vectors: float32 [size, dimension].
      items: int32 [size], catalogue positions; -1 where nothing is kept yet.

    References:
      Wang et al., Cross-batch negative sampling for training two-tower
      recommenders, SIGIR '21.
    """

    def __init__(
        self, size: int, dimension: int, known: tuple[tf.Tensor, tf.Tensor]
    ) -> None:
        self.vectors = tf.Variable(tf.zeros([size, dimension]), trainable=False)
        self.items = tf.Variable(tf.fill([size], _EMPTY), trainable=False)
        self._known = known

    def reset(self) -> None:
        """Forgets everything."""
        self.vectors.assign(tf.zeros_like(self.vectors))
        self.items.assign(tf.fill(tf.shape(self.items), _EMPTY))

    def state(self) -> dict[str, tf.Variable]:
        """Returns what a checkpoint has to hold."""
        return {"memory/vectors": self.vectors, "memory/items": self.items}

    def counts(self) -> tf.Tensor:
        """Returns float32 [size], 0 where nothing is kept yet."""
        return tf.cast(self.items != _EMPTY, tf.float32)

    def positions(self) -> tf.Tensor:
        """Returns int32 [size], catalogue positions, any where nothing is kept yet."""
        return tf.maximum(self.items, 0)

    def excluded_pairs(self, known: tf.Tensor) -> tf.Tensor:
        """Returns (row, place) of known positives of the rows, int32 [k, 2], sorted.

        Args:
          known: int32 [rows], numbers of the rows' lists.
        """
        return known_pairs(*self._known, known, self.positions())

    def beside(
        self, batch: Columns, positives: tf.Tensor, known: tf.Tensor, own: tf.Tensor
    ) -> Columns:
        """Returns the columns of a batch with those of the memory.

        The first are those of the batch once more, for the positives alone: their
        gradient is the usual one, that of the batch's negatives is not; see the class.

        Args:
          batch: what the batch has.
          positives: int32 [n, 2] of (row, column).
          known: int32 [rows], numbers of the rows' lists of known positives.
          own: float scalar, draws in `batch.counts` that are a row's own positives.
        """
        drawn, kept = tf.reduce_sum(batch.counts) - own, self.counts()
        factor = 1.0 + tf.reduce_sum(kept) / tf.maximum(drawn, 1.0)
        negatives = _push_times(batch.vectors, factor)
        shift = tf.stack([0, tf.size(batch.items)])
        excluded = [
            batch.excluded + shift,
            positives + shift,
            self.excluded_pairs(known) + 2 * shift,
        ]
        pairs = tf.concat(excluded, axis=0)
        return Columns(
            tf.concat([batch.vectors, negatives, self.vectors], axis=0),
            tf.concat([batch.items, batch.items, self.positions()], axis=0),
            tf.concat([tf.zeros_like(batch.counts), batch.counts, kept], axis=0),
            tf.gather(pairs, tf.argsort(pairs[:, 0], stable=True)),
        )

    def push(self, vectors: tf.Tensor, items: tf.Tensor) -> None:
        """Adds candidates; the oldest make room."""
        size = self.items.shape[0]
        vectors = tf.concat([tf.stop_gradient(vectors), self.vectors], axis=0)
        items = tf.concat([items, self.items], axis=0)
        self.vectors.assign(vectors[:size])
        self.items.assign(items[:size])


def _push_times(vectors: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns the vectors, whose gradient is `factor` times the one that arrives."""

    @tf.custom_gradient
    def same(values: tf.Tensor) -> tuple[tf.Tensor, object]:
        return tf.identity(values), lambda upstream: factor * upstream

    return same(vectors)
