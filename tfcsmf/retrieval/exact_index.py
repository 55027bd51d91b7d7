"""The index contract, and exact search with standard TensorFlow operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.evaluation.topk import GROUP, promising

ABSENT = -1  # the position where a search has nothing to return
# Scores held at once by exact search: 128 MiB.
_SCORES = 2**25


class Index(tf.Module):
    """Finds the candidates with the largest inner products.

    Attributes:
      k: results per query the index was built for; `search` may ask for more.
      size: candidates C.
      is_exact: whether the results are those of exhaustive search.
    """

    k: int
    size: int
    is_exact: bool

    def search(
        self,
        queries: tf.Tensor,
        count: tf.Tensor | int,
        allowed: tf.Tensor | None = None,
        widening: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches for a batch of queries.

        Args:
          queries: float32 [B, d].
          count: results per query, <= C.
          allowed: bool [C], the candidates that may be found; default all.
          widening: an approximate index reads so many times what it was calibrated
            to, >= 1; where one candidate of n is allowed, n.

        Returns:
          Inner products, float32 [B, count], best first, and positions, int32
          [B, count]. Where fewer are allowed, or an approximate index found fewer, the
          score is -inf and the position `ABSENT`.
        """
        raise NotImplementedError

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors, float32 [C, d]."""
        raise NotImplementedError

    def take(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the vectors at some positions.

        Args:
          positions: int32, any shape; at `ABSENT` any vector may come.

        Returns:
          float32, a last axis of size d added.
        """
        return tf.gather(self.vectors(), tf.maximum(positions, 0))

    def describe(self) -> dict[str, Any]:
        """Returns kind, parameters and measurements as JSON-able values."""
        raise NotImplementedError


class ExactIndex(Index):
    """Scores every candidate; equal scores are ordered by position.

    Args:
      candidates: float32 [C, d].
      k: results per query.

    Example:
      >>> index = ExactIndex(np.float32([[1], [3], [2]]), k=2)
      >>> scores, positions = index.search(tf.constant([[2.0]]), 2)
      >>> scores.numpy().tolist(), positions.numpy().tolist()
      ([[6.0, 4.0]], [[1, 2]])
    """

    is_exact = True

    def __init__(self, candidates: np.ndarray, k: int) -> None:
        super().__init__()
        self.size, self.k = len(candidates), min(k, len(candidates))
        # Transposed once: the product then reads both sides in memory order. The last
        # candidate fills the last group up.
        columns = np.pad(candidates.T, ((0, 0), (0, -self.size % GROUP)), "edge")
        self._columns = tf.Variable(columns, trainable=False, dtype=tf.float32)

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors; see `Index.vectors`."""
        return tf.transpose(self._columns[:, : self.size])

    def take(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the vectors at some positions; see `Index.take`."""
        found = tf.gather(self._columns, tf.maximum(positions, 0), axis=1)
        last = tf.rank(found) - 1
        return tf.transpose(found, tf.concat([tf.range(1, last + 1), [0]], axis=0))

    def search(
        self,
        queries: tf.Tensor,
        count: tf.Tensor | int,
        allowed: tf.Tensor | None = None,
        widening: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches exhaustively; see `Index.search`.

        Large batches are scored in parts, so that memory stays bounded.
        """
        count = tf.convert_to_tensor(count, tf.int32)
        groups = self._columns.shape[1] // GROUP
        if allowed is not None:
            allowed = tf.pad(allowed, [[0, -self.size % GROUP]])

        def search(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            products = tf.matmul(part, self._columns)  # [b, C and what fills up]
            if allowed is not None:
                products = tf.where(allowed, products, -np.inf)
            scores, positions = tf.cond(
                # Else sorting everything is as good. An empty batch has no groups.
                (groups > 2 * count) & (tf.shape(part)[0] > 0),
                lambda: self._best_of_groups(products, count),
                lambda: _top_k(products[:, : self.size], count),
            )
            if allowed is not None:
                positions = tf.where(tf.equal(scores, -np.inf), ABSENT, positions)
            return scores, positions

        return search_in_parts(search, queries, max(1, _SCORES // self.size))

    def _best_of_groups(
        self, products: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        floor = tf.fill([tf.shape(products)[0], 1], np.float32(-np.inf))
        scores, positions = promising(products, floor, count)
        scores = tf.where(positions < self.size, scores, -np.inf)
        # Groups without any allowed candidate are left out, maybe all but a few.
        missing = tf.maximum(count - tf.shape(scores)[1], 0)
        scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=-np.inf)
        positions = tf.pad(positions, [[0, 0], [0, missing]], constant_values=ABSENT)
        scores, order = tf.math.top_k(scores, count)
        return scores, tf.gather(positions, order, batch_dims=1)

    def describe(self) -> dict[str, Any]:
        """Returns what `cascade.json` says of the index."""
        return {"kind": "exact", "is_exact": True, "recall": 1.0}


def _top_k(scores: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    best, where = tf.math.top_k(scores, count)
    return best, where


def search_in_parts(
    search: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    queries: tf.Tensor,
    chunk: tf.Tensor | int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Searches for some queries at a time.

    Args:
      search: takes queries [b, d], gives scores and positions, [b, count] each.
      queries: float32 [B, d].
      chunk: largest b.

    Returns:
      What `search` returns, for all queries.
    """

    def array(dtype: tf.DType) -> tf.TensorArray:
        return tf.TensorArray(
            dtype, 0, True, infer_shape=False, element_shape=[None, None]
        )

    def step(start: tf.Tensor, scores: Any, positions: Any) -> tuple:
        best, where = search(queries[start : start + chunk])
        at = start // chunk
        return start + chunk, scores.write(at, best), positions.write(at, where)

    # At least once: an empty batch has an empty answer.
    _, scores, positions = tf.while_loop(
        lambda start, *_: (start == 0) | (start < tf.shape(queries)[0]),
        step,
        (tf.constant(0), array(tf.float32), array(tf.int32)),
        parallel_iterations=1,
    )
    return scores.concat(), positions.concat()


def drop_excluded(
    scores: tf.Tensor, positions: tf.Tensor, excluded: tf.Tensor, k: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes the best k results that are not excluded.

    Args:
      scores: float32 [B, n], best first.
      positions: int32 [B, n].
      excluded: int32 [B, E], positions; `ABSENT` excludes nothing.
      k: results to keep. They are the right ones if n >= min(k + E, C).

    Returns:
      scores, float32 [B, k], and positions, int32 [B, k]; -inf and `ABSENT` where
      fewer than k are left.

    Example:
      >>> scores, positions = drop_excluded(
      ...     tf.constant([[3.0, 2.0, 1.0]]), tf.constant([[7, 4, 9]]),
      ...     tf.constant([[-1, 7]]), 3,
      ... )
      >>> scores.numpy().tolist(), positions.numpy().tolist()
      ([[2.0, 1.0, -inf]], [[4, 9, -1]])
    """
    # A column that excludes nothing, so that there is one to compare with.
    padded = tf.pad(excluded, [[0, 0], [1, 0]], constant_values=ABSENT)
    ordered = tf.sort(padded, axis=1)
    # Sorted lists: E may be large, and n x E comparisons would be too many.
    slots = tf.searchsorted(ordered, positions)
    slots = tf.minimum(slots, tf.shape(ordered)[1] - 1)
    hit = tf.equal(tf.gather(ordered, slots, batch_dims=1), positions)
    kept = ~hit & (positions != ABSENT)
    scores = tf.where(kept, scores, -np.inf)
    positions = tf.where(kept, positions, ABSENT)
    missing = tf.maximum(k - tf.shape(scores)[1], 0)
    scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=-np.inf)
    positions = tf.pad(positions, [[0, 0], [0, missing]], constant_values=ABSENT)
    scores, order = tf.math.top_k(scores, k)  # stable: ties keep their order
    return scores, tf.gather(positions, order, batch_dims=1)
