"""The sampled softmax and its gradient, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Low enough that exp() of it is exactly zero beside any real score, and finite, so
# that a row without negatives has loss 0 and no NaN gradient.
EXCLUDED = -1e9

# Scores held at once: 8 MB, which stays in the last cache of common processors; 4 MB
# was a tenth slower, its products being too small.
_CHUNK_SCORES = 1 << 21
_MIN_ROWS = 64

# (scores of rows [start, stop), start, stop) -> scores, both [stop - start, columns].
AdjustScores = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def chunked_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    column_bias: tf.Tensor | None = None,
    positive_bias: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
    excluded_pairs: tf.Tensor | None = None,
    adjust: AdjustScores | None = None,
    positive_columns: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the summed softmax cross-entropy of rows against columns.

    The positive of row r is column r, or `positive_columns[r]`. Scores are computed
    for some rows at a time, and the gradient along with them, so that neither pass
    holds a [rows, columns] matrix: memory is a chunk of two million scores.

    Args:
      queries: float [rows, d].
      candidates: float [columns, d], columns >= rows unless `positive_columns` is
        given.
      column_bias: float [columns], added to the scores of negatives.
      positive_bias: float [rows], added to the positives' scores.
      sample_weight: float [rows].
      excluded_pairs: int32 [n, 2] of (row, column), sorted by row: left out of
        the softmax. Positives never are.
      adjust: changes the biased scores of negatives (margins, masks); no gradient
        flows through what it adds.
      positive_columns: int32 [rows], for candidates that are listed once however
        many rows have them as their positive, such as a whole catalogue.

    Returns:
      A float scalar, differentiable (once) in queries and candidates.

    Example:
      >>> loss = chunked_softmax(tf.zeros([2, 3]), tf.zeros([2, 3]))  # 2 ln 2
      >>> round(float(loss), 4)
      1.3863
    """
    columns = tf.shape(candidates)[0]
    chunk = tf.maximum(_CHUNK_SCORES // tf.maximum(columns, 1), _MIN_ROWS)

    @tf.custom_gradient
    def loss_of(queries: tf.Tensor, candidates: tf.Tensor) -> tuple[tf.Tensor, object]:
        rows = tf.shape(queries)[0]
        columns_of = tf.range(rows) if positive_columns is None else positive_columns
        # [rows, d], the positives
        own = candidates[:rows]
        if positive_columns is not None:
            own = tf.gather(candidates, positive_columns)
        positives = tf.reduce_sum(queries * own, axis=1)
        if positive_bias is not None:
            positives += positive_bias
        weights = (
            tf.ones_like(positives)
            if sample_weight is None
            else tf.cast(sample_weight, positives.dtype)
        )

        def body(
            number: tf.Tensor,
            total: tf.Tensor,
            parts: tf.TensorArray,
            candidate_gradient: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            start = number * chunk
            stop = tf.minimum(start + chunk, rows)
            part = queries[start:stop]
            scores = tf.matmul(part, candidates, transpose_b=True)
            if column_bias is not None:
                scores = tf.nn.bias_add(scores, column_bias)
            if adjust is not None:
                scores = adjust(scores, start, stop)
            hidden = _hidden_in(excluded_pairs, columns_of[start:stop], start, stop)
            scores = tf.tensor_scatter_nd_update(
                scores, hidden, tf.fill([tf.shape(hidden)[0]], EXCLUDED)
            )
            positive = positives[start:stop, tf.newaxis]
            top = tf.maximum(tf.reduce_max(scores, axis=1, keepdims=True), positive)
            # Left unnormalised: d columns are divided instead of all of them.
            share = tf.exp(scores - top)  # [r, columns]
            positive_share = tf.exp(positive - top)
            norm = tf.reduce_sum(share, axis=1, keepdims=True) + positive_share
            weight = weights[start:stop, tf.newaxis]
            total += tf.reduce_sum(weight * (tf.math.log(norm) + top - positive))
            scale = weight / norm
            pull = scale * positive_share - weight  # of the positive, <= 0
            parts = parts.write(
                number,
                scale * tf.matmul(share, candidates) + pull * own[start:stop],
            )
            candidate_gradient += tf.matmul(share, scale * part, transpose_a=True)
            if positive_columns is None:
                ends = [start, tf.shape(candidates)[0] - stop]
                candidate_gradient += tf.pad(pull * part, [ends, [0, 0]])
            else:
                candidate_gradient = tf.tensor_scatter_nd_add(
                    candidate_gradient,
                    columns_of[start:stop, tf.newaxis],
                    pull * part,
                )
            return number + 1, total, parts, candidate_gradient

        count = tf.maximum((rows + chunk - 1) // chunk, 1)
        _, total, parts, candidate_gradient = tf.while_loop(
            lambda number, *_: number < count,
            body,
            (
                tf.constant(0),
                tf.zeros([], queries.dtype),
                tf.TensorArray(
                    queries.dtype,
                    count,
                    infer_shape=False,
                    element_shape=[None, queries.shape[1]],
                ),
                tf.zeros_like(candidates),
            ),
            parallel_iterations=1,  # or several chunks would be held at once
        )
        query_gradient = tf.reshape(parts.concat(), tf.shape(queries))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return upstream * query_gradient, upstream * candidate_gradient

        return total, gradient

    return loss_of(queries, candidates)


def _hidden_in(
    excluded_pairs: tf.Tensor | None,
    columns: tf.Tensor,
    start: tf.Tensor,
    stop: tf.Tensor,
) -> tf.Tensor:
    """Returns (row - start, column) of the positives and excluded pairs, [n, 2]."""
    positives = tf.stack([tf.range(stop - start), columns], axis=1)
    if excluded_pairs is None:
        return positives
    first, last = tf.unstack(tf.searchsorted(excluded_pairs[:, 0], [start, stop]))
    pairs = excluded_pairs[first:last] - tf.stack([start, tf.zeros_like(start)])
    return tf.concat([positives, pairs], axis=0)
