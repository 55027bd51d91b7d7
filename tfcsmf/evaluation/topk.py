"""Exact top-k over the whole catalogue, in bounded memory.

Scores are computed for one batch of queries against one block of candidates at a
time, excluded pairs of that block are set to -inf, and the block's best are
merged into the running best. The largest array is `query_batch x candidate_block`.

Sorting a whole block would cost several times its product. Instead the maximum of
every group of 64 neighbours is taken, and only groups that can still hold one of the
k best are looked at: few, once the first blocks have set a high mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfcsmf.data.prepared import Csr
from tfcsmf.errors import ConfigError, TfcsmfError
from tfcsmf.evaluation.lists import row_numbers, take_ranges

ABSENT = -1  # the position reported where the catalogue has run out

GROUP = 64  # neighbours judged by their maximum

_Block = tuple[int, tf.Tensor]  # first position, candidates transposed [d, c]
_MATRIX = tf.TensorSpec([None, None], tf.float32)
_POSITIONS = tf.TensorSpec([None, None], tf.int32)
_COUNT = tf.TensorSpec([], tf.int32)


def _merge(
    best: tf.Tensor,
    positions: tf.Tensor,
    scores: tf.Tensor,
    excluded: tf.Tensor,
    start: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Merges one block of scores [q, c] into the best so far [q, k]."""
    minus_infinity = tf.fill([tf.shape(excluded)[0]], np.float32(-np.inf))
    # In place, which `tensor_scatter_nd_update` never is on CPU.
    scores = tf.raw_ops.ScatterNdNonAliasingAdd(
        input=scores, indices=excluded, updates=minus_infinity
    )
    k = tf.shape(best)[1]
    rows, columns = tf.unstack(tf.shape(scores))
    groups = columns // GROUP
    scores, columns = tf.cond(
        # Else sorting everything is as good, or there are incomplete groups.
        (groups * GROUP == columns) & (groups > 2 * k) & (rows > 0),
        lambda: promising(scores, best[:, -1:], k),
        lambda: _best(scores, k),
    )
    # `top_k` prefers the left of two equals: the best so far, which has the lower
    # positions, and the initial -inf rather than an excluded candidate.
    best, picked = tf.math.top_k(tf.concat([best, scores], axis=1), k)  # [q, k]
    positions = tf.concat([positions, columns + start], axis=1)
    return best, tf.gather(positions, picked, batch_dims=1)


def _best(scores: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the k best scores [q, <= k] of every row and their columns."""
    top, columns = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
    return top, columns


def promising(
    scores: tf.Tensor, floor: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Leaves out groups of columns without any score of the k best.

    The k groups with the largest maxima hold the k best: whatever is in another
    group has k at least equal scores before it, left of it if equal.

    Args:
      scores: float [q, c], c a multiple of `GROUP`.
      floor: float [q, 1]; no score up to it is wanted.
      k: scores wanted per row, an int scalar.

    Returns:
      Scores [q, n] and their columns, ascending. A superset of what is wanted.
    """
    parts = tf.reshape(scores, [tf.shape(scores)[0], -1, GROUP])
    maxima = tf.reduce_max(parts, axis=2)  # [q, c / GROUP]
    above = tf.reduce_sum(tf.cast(maxima > floor, tf.int32), axis=1)
    # As many for every row as the row with the most of them has.
    _, chosen = tf.math.top_k(maxima, tf.minimum(k, tf.reduce_max(above)))
    chosen = tf.sort(chosen, axis=1)  # equal scores stay ordered by position
    parts = tf.gather(parts, chosen, batch_dims=1)  # [q, groups, GROUP]
    columns = chosen[..., tf.newaxis] * GROUP + tf.range(GROUP)
    shape = [tf.shape(scores)[0], tf.shape(chosen)[1] * GROUP]
    return tf.reshape(parts, shape), tf.reshape(columns, shape)


# One trace each for the whole process: every axis is left open.
_merge_scores = tf.function(
    _merge, input_signature=[_MATRIX, _POSITIONS, _MATRIX, _POSITIONS, _COUNT]
)


@tf.function(
    input_signature=[_MATRIX, _POSITIONS, _MATRIX, _MATRIX, _POSITIONS, _COUNT]
)
def _merge_vectors(
    best: tf.Tensor,
    positions: tf.Tensor,
    queries: tf.Tensor,
    block: tf.Tensor,
    excluded: tf.Tensor,
    start: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    return _merge(best, positions, tf.matmul(queries, block), excluded, start)


class Catalogue:
    """Candidate vectors laid out for repeated exact search.

    Args:
      candidate_vectors: float32 [C, d]; row p belongs to catalogue position p.
      candidate_block: candidates scored at once.

    Raises:
      TfcsmfError: if a vector is not finite.

    Example:
      >>> catalogue = Catalogue(np.eye(3, dtype=np.float32))
      >>> scores, positions = catalogue.top_k(np.float32([[1, 3, 2]]), 2)
      >>> scores.tolist(), positions.tolist()
      ([[3.0, 2.0]], [[1, 2]])
    """

    def __init__(self, candidate_vectors: np.ndarray, candidate_block: int = 65536):
        vectors = _finite_matrix(candidate_vectors, "Candidate")
        self.size, self.dimension = vectors.shape
        self._largest = _largest(vectors)
        # Transposed once: the product then reads both sides in memory order.
        self._blocks: list[_Block] = [
            (start, tf.constant(vectors[start:stop].T))
            for start, stop in _cuts(self.size, candidate_block)
        ]

    def top_k(
        self,
        query_vectors: np.ndarray,
        k: int,
        exclude: Csr | None = None,
        query_batch: int = 512,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best candidates of each query; see `top_k`."""
        queries = _finite_matrix(query_vectors, "Query")
        if queries.shape[1] != self.dimension:
            raise ConfigError(
                "Query and candidate vectors should have the same dimension. "
                f"Received: {queries.shape[1]} and {self.dimension}."
            )
        self._check_range(queries)
        starts = [start for start, _ in self._blocks]
        result = _empty_result(len(queries), k)
        for rows in _batches(len(queries), query_batch, exclude):
            best, positions = _initial(len(rows), k)
            batch = tf.constant(queries[rows])
            masks = _excluded_by_block(exclude, rows, starts, self.size)
            for (start, block), excluded in zip(self._blocks, masks, strict=True):
                best, positions = _merge_vectors(
                    best, positions, batch, block, excluded, tf.constant(start)
                )
            result[0][rows], result[1][rows] = best.numpy(), positions.numpy()
        return result

    def _check_range(self, queries: np.ndarray) -> None:
        """Refuses vectors whose products overflow: infinities have no order."""
        largest = _largest(queries)
        bound = self.dimension * largest * self._largest
        if bound > float(np.finfo(np.float32).max):
            raise TfcsmfError(
                "Vectors should be small enough for products in float32. Received: "
                f"values up to {largest:.1e} (queries) and {self._largest:.1e} "
                "(candidates). If they come from training, it has diverged: lower "
                "cascade.stage.learning_rate."
            )


def top_k(
    query_vectors: np.ndarray,
    candidate_vectors: np.ndarray,
    k: int,
    exclude: Csr | None = None,
    query_batch: int = 512,
    candidate_block: int = 65536,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the candidates with the largest inner products, exactly.

    Equal scores are ordered by position, as a stable sort would. Every candidate
    is scored; memory holds `query_batch x candidate_block` scores at a time.
    "Exact" is up to the rounding of the device's float32 products; accelerators
    that round them further (TF32) may swap near-equal candidates.

    Args:
      query_vectors: float32 [Q, d].
      candidate_vectors: float32 [C, d].
      k: candidates per query, >= 1; may exceed the catalogue.
      exclude: one list of catalogue positions per query that must not be returned.
      query_batch: queries scored at once.
      candidate_block: candidates scored at once.

    Returns:
      scores, float32 [Q, k], best first, and positions, int32 [Q, k]. Where fewer
      than k candidates are left, the score is -inf and the position `ABSENT` (-1).

    Raises:
      ConfigError: for shapes or a k that do not fit.
      TfcsmfError: if a vector is not finite, or products may overflow.

    Example:
      >>> queries = np.float32([[1, 0]])
      >>> candidates = np.float32([[1, 9], [3, 0], [2, 0]])
      >>> exclude = Csr(np.array([0, 1]), np.array([1]))
      >>> scores, positions = top_k(queries, candidates, 3, exclude)
      >>> scores.tolist(), positions.tolist()
      ([[2.0, 1.0, -inf]], [[2, 0, -1]])
    """
    catalogue = Catalogue(candidate_vectors, candidate_block)
    return catalogue.top_k(query_vectors, k, exclude, query_batch)


def top_k_scores(
    score: Callable[[np.ndarray], np.ndarray],
    num_queries: int,
    num_candidates: int,
    k: int,
    exclude: Csr | None = None,
    query_batch: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the best candidates by scores that are no inner products.

    Args:
      score: takes query rows, int [q], and gives float32 scores [q, C]; it is
        asked for at most `query_batch` rows at a time.
      num_queries: number of queries Q; rows are `0..Q-1`.
      num_candidates: size of the catalogue C.
      k: as in `top_k`, and so are `exclude`, `query_batch` and the returned values.
      exclude: see `k`.
      query_batch: see `k`.

    Raises:
      ConfigError: if `score` returns another shape than [q, C].
      TfcsmfError: if a score is not a number or positive infinity.
    """
    result = _empty_result(num_queries, k)
    for rows in _batches(num_queries, query_batch, exclude):
        scores = np.asarray(score(rows), np.float32)
        if scores.shape != (len(rows), num_candidates):
            raise ConfigError(
                "Scores should have one row per query and one column per candidate, "
                f"{(len(rows), num_candidates)}. Received: {scores.shape}."
            )
        if not (scores < np.inf).all():
            raise TfcsmfError(
                "Scores should be numbers below infinity. Received: NaN or infinity."
            )
        (excluded,) = _excluded_by_block(exclude, rows, [0], num_candidates)
        best, positions = _merge_scores(
            *_initial(len(rows), k), scores, excluded, tf.constant(0)
        )
        result[0][rows], result[1][rows] = best.numpy(), positions.numpy()
    return result


def _cuts(size: int, block: int) -> Iterator[tuple[int, int]]:
    """Cuts a catalogue into blocks; an incomplete group is a block of its own."""
    for start in range(0, size, block):
        stop = min(start + block, size)
        whole = stop - (stop - start) % GROUP
        yield from ((a, b) for a, b in ((start, whole), (whole, stop)) if a < b)


def _finite_matrix(vectors: np.ndarray, side: str) -> np.ndarray:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim != 2:
        raise ConfigError(
            f"{side} vectors should be a matrix [rows, dimension]. "
            f"Received: shape {matrix.shape}."
        )
    if not np.isfinite(matrix).all():
        raise TfcsmfError(
            f"{side} vectors should be finite. Received: NaN or infinity. If they "
            "come from training, it has diverged: lower cascade.stage.learning_rate."
        )
    return matrix


def _largest(matrix: np.ndarray) -> float:
    """Returns the largest magnitude, without a copy."""
    return float(max(matrix.max(initial=0.0), -matrix.min(initial=0.0)))


def _empty_result(num_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    if k < 1:
        raise ConfigError(f"k should be at least 1. Received: {k}.")
    return (
        np.full((num_queries, k), -np.inf, np.float32),
        np.full((num_queries, k), ABSENT, np.int32),
    )


def _initial(num_queries: int, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    return (
        tf.fill([num_queries, k], np.float32(-np.inf)),
        tf.fill([num_queries, k], np.int32(ABSENT)),
    )


def _batches(size: int, batch: int, exclude: Csr | None) -> Iterator[np.ndarray]:
    if exclude is not None and len(exclude.offsets) != size + 1:
        raise ConfigError(
            f"Exclusions should have one list per query, {size}. "
            f"Received: {len(exclude.offsets) - 1}."
        )
    for start in range(0, size, batch):
        yield np.arange(start, min(start + batch, size))


def _excluded_by_block(
    exclude: Csr | None, rows: np.ndarray, starts: Sequence[int], size: int
) -> list[np.ndarray]:
    """Splits the excluded pairs of these rows by block, as [n, 2] (row, column)."""
    if exclude is None:
        return [np.zeros((0, 2), np.int32) for _ in starts]
    part = take_ranges(exclude.items, exclude.offsets[rows], exclude.offsets[rows + 1])
    inside = (part.items >= 0) & (part.items < size)
    items = part.items[inside]
    order = np.argsort(items, kind="stable")
    pairs = np.stack([row_numbers(part)[inside], items], axis=1)[order]
    cuts = np.searchsorted(pairs[:, 1], starts[1:])
    blocks = np.split(pairs.astype(np.int32), cuts)
    return [
        block - np.array([0, start], np.int32)
        for block, start in zip(blocks, starts, strict=True)
    ]
