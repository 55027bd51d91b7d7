"""The index contract, and exact search with standard TensorFlow operations."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.errors import ExportError

_LOG = logging.getLogger(__name__)

ABSENT = -1  # the position where a search has nothing to return
# Scores held at once by exact search: 128 MiB.
_SCORES = 2**25
# Below this size ScaNN's tree has too few points per leaf to be trained.
_SCANN_MINIMUM = 1000


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
        self, queries: tf.Tensor, count: tf.Tensor | int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches for a batch of queries.

        Args:
          queries: float32 [B, d].
          count: results per query, <= C.

        Returns:
          Inner products, float32 [B, count], best first, and positions, int32
          [B, count]. Where an approximate index found fewer, the score is -inf and the
          position `ABSENT`.
        """
        raise NotImplementedError

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors, float32 [C, d]."""
        raise NotImplementedError

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
        self._candidates = tf.Variable(candidates, trainable=False, dtype=tf.float32)

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors; see `Index.vectors`."""
        return tf.convert_to_tensor(self._candidates)

    def search(
        self, queries: tf.Tensor, count: tf.Tensor | int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches exhaustively; see `Index.search`.

        Large batches are scored in parts, so that memory stays bounded.
        """
        candidates = self.vectors()
        chunk = max(1, _SCORES // self.size)

        def array(dtype: tf.DType) -> tf.TensorArray:
            return tf.TensorArray(
                dtype, 0, True, infer_shape=False, element_shape=[None, None]
            )

        def step(start: tf.Tensor, scores: Any, positions: Any) -> tuple:
            part = queries[start : start + chunk]
            products = tf.matmul(part, candidates, transpose_b=True)  # [chunk, C]
            best, where = tf.math.top_k(products, count)
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

    def describe(self) -> dict[str, Any]:
        """Returns what `cascade.json` says of the index."""
        return {"kind": "exact", "is_exact": True, "recall": 1.0}


def drop_excluded(
    scores: tf.Tensor, positions: tf.Tensor, excluded: tf.Tensor, k: int
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


def build_index(
    candidates: np.ndarray,
    calibration_queries: np.ndarray,
    settings: RetrievalConfig,
    seed: int = 0,
) -> Index:
    """Builds the index a configuration asks for.

    Args:
      candidates: float32 [C, d].
      calibration_queries: float32 [Q, S, d], query vectors per objective, each
        divided by its scale; used to set the parameters of ScaNN.
      settings: `retrieval` of the configuration.
      seed: of the random weights.

    Raises:
      ExportError: for an empty catalogue or vectors that are not finite.
    """
    candidates = np.asarray(candidates, np.float32)
    if not len(candidates):
        raise ExportError("An index needs at least one candidate. Received: none.")
    if not np.isfinite(candidates).all():
        raise ExportError(
            "Candidate vectors should be finite. Received: NaN or infinity. Training "
            "has diverged: lower cascade.stage.learning_rate."
        )
    size = len(candidates)
    wanted = settings.index == "scann"
    if settings.index == "auto":
        wanted = size >= settings.scann_from
    if wanted and size < _SCANN_MINIMUM:
        _LOG.warning(
            "The index is exact: ScaNN needs %d candidates, the catalogue has %d.",
            _SCANN_MINIMUM,
            size,
        )
        wanted = False
    if not wanted:
        return ExactIndex(candidates, settings.k)
    # Imported late: exact indexes need neither scann nor tensorflow-recommenders.
    from tfcsmf.retrieval.scann_index import build_scann

    return build_scann(candidates, calibration_queries, settings, seed)
