"""Cross-batch memory: candidates of the batches before, as further negatives."""

from __future__ import annotations

import tensorflow as tf

from tfcsmf.data.known_pairs import known_pairs

_EMPTY = -1


class CandidateMemory:
    """The positives of the last batches with the vectors they had then.

    The vectors are a few steps old and get no gradient. A positive that several rows
    had is kept as often, so that a place of the memory is a draw by popularity, as a
    positive of the batch is.

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

    def push(self, vectors: tf.Tensor, items: tf.Tensor) -> None:
        """Adds candidates; the oldest make room."""
        size = self.items.shape[0]
        vectors = tf.concat([tf.stop_gradient(vectors), self.vectors], axis=0)
        items = tf.concat([items, self.items], axis=0)
        self.vectors.assign(vectors[:size])
        self.items.assign(items[:size])
