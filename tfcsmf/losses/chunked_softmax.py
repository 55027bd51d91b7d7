"""The sampled softmax and its gradient, a chunk of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

# Low enough that exp() of it is exactly zero beside any real score, and finite, so
# that a row without negatives has loss 0 and no NaN gradient.
EXCLUDED = -1e9

# Scores held at once: 16 MB, which stays in the last cache of common processors; of 4
# MB the products are too small, and 64 MB are new pages every time.
_CHUNK_SCORES = 1 << 22
_MIN_ROWS = 64

# Below this exp(x) and sigmoid(x), which differ by a factor 1 + e^x, are one float, and
# oneDNN has a product of matrices with bias and sigmoid, but none with exponentials:
# these cost a pass over all scores more, and one to lower them.
_TAIL = -17.0
# Scores that span no more are lowered by one number: exp() of the lowest is a float.
_SPAN = 40.0
# Shares, with margins too, are below e^_SPAN, which is less than half a unit in the
# last place of this.
_LARGE = 2.0**100

# (scores of rows [start, stop), start, stop) -> scores, both [stop - start, columns].
AdjustScores = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class RowMargins:
    """What is added to the scores of negatives, for some rows at a time.

    Attributes:
      of: (start, stop) -> the margins of rows [start, stop), [stop - start, columns].
        No gradient flows into them.
      largest: no margin is greater. Where it is small exponentials are computed faster.
      due: bool scalar, whether there are margins this time; `None` for always.
    """

    of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    largest: float = math.inf
    due: tf.Tensor | None = None

    def added_to(
        self, scores: tf.Tensor, start: tf.Tensor, stop: tf.Tensor
    ) -> tf.Tensor:
        """Returns the scores of those rows with their margins."""
        return self._if_due(lambda: scores + self.of(start, stop), scores)

    def as_factors_of(
        self, shares: tf.Tensor, start: tf.Tensor, stop: tf.Tensor
    ) -> tf.Tensor:
        """Returns exponentials of scores as those with margins would be."""
        return self._if_due(lambda: shares * tf.exp(self.of(start, stop)), shares)

    def _if_due(
        self, changed: Callable[[], tf.Tensor], unchanged: tf.Tensor
    ) -> tf.Tensor:
        if self.due is None:
            return changed()
        return tf.cond(self.due, changed, lambda: unchanged)


def chunked_softmax(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    column_bias: tf.Tensor | None = None,
    positive_bias: tf.Tensor | None = None,
    sample_weight: tf.Tensor | None = None,
    excluded_pairs: tf.Tensor | None = None,
    adjust: AdjustScores | None = None,
    positives: tf.Tensor | None = None,
    extra: tf.Tensor | None = None,
    margin: RowMargins | None = None,
) -> tf.Tensor:
    """Returns the softmax cross-entropy of rows against columns, summed over positives.

    The positive of row r is column r, or a row has the positives P_r that `positives`
    lists. They share the row's negatives N_r, all columns but P_r and those excluded:

        sum over r, p in P_r of w_p (log(exp(s_rp) + sum_{j in N_r} exp(s_rj)) - s_rp)

    so that one positive of a row is never a negative of another. It is the loss of
    one row per positive at the price of one row.

    Scores are computed for some rows at a time, and the gradient along with them, so
    that neither pass holds a [rows, columns] matrix: memory is a chunk of four million
    scores.

    Args:
      queries: float [rows, d].
      candidates: float [columns, d], columns >= rows unless `positives` is given.
      column_bias: float [columns], added to the scores of negatives.
      positive_bias: float [n], added to the positives' scores; n is the number of
        positives, by default `rows`.
      sample_weight: float [n].
      excluded_pairs: int32 [m, 2] of (row, column), sorted by row: left out of
        the softmax. Positives never are.
      adjust: changes the biased scores of negatives (masks); no gradient flows through
        what it adds.
      positives: int32 [n, 2] of (row, column), sorted by row: any number per row, also
        none, for candidates that are listed once however many rows have them as
        their positive. Rows without positives add nothing and get no gradient.
      extra: float [n], the logarithm of what further negatives of each positive add to
        its denominator: `log(exp(s_rp) + sum_{j in N_r} exp(s_rj) + exp(extra_p))`.
      margin: what is added to the biased scores of negatives.

    Returns:
      A float scalar, differentiable (once) in queries, candidates and extra.

    Example:
      >>> loss = chunked_softmax(tf.zeros([2, 3]), tf.zeros([2, 3]))  # 2 ln 2
      >>> round(float(loss), 4)
      1.3863
      >>> both = tf.constant([[0, 0], [0, 1]])  # of row 0, against column 2: 2 ln 2
      >>> loss = chunked_softmax(tf.zeros([2, 3]), tf.zeros([3, 3]), positives=both)
      >>> round(float(loss), 4)
      1.3863
    """
    columns = tf.shape(candidates)[0]
    chunk = tf.maximum(_CHUNK_SCORES // tf.maximum(columns, 1), _MIN_ROWS)

    @tf.custom_gradient
    def loss_of(
        queries: tf.Tensor, candidates: tf.Tensor, *extras: tf.Tensor
    ) -> tuple[tf.Tensor, object]:
        rows = tf.shape(queries)[0]
        shift = None
        factors = margin is None or margin.largest <= _SPAN
        if adjust is None and factors and queries.dtype == tf.float32:
            shift = _Shift.of(queries, candidates, column_bias, positive_bias)

        def body(
            number: tf.Tensor,
            total: tf.Tensor,
            parts: tf.TensorArray,
            extra_parts: tf.TensorArray,
            candidate_gradient: tf.Tensor,
            transposed: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            start = number * chunk
            stop = tf.minimum(start + chunk, rows)
            part = queries[start:stop]
            own = (
                _Diagonal(start, stop)
                if positives is None
                else _Listed(positives, start, stop)
            )
            hidden = _hidden_in(excluded_pairs, own.pairs, start, stop)
            # Below, p is the number of positives of these rows, r that of the rows.
            owners, vectors = own.spread(part), own.vectors(candidates)  # [p, d]
            positive = tf.reduce_sum(owners * vectors, axis=1, keepdims=True)  # [p, 1]
            if positive_bias is not None:
                positive += positive_bias[own.first : own.last, tf.newaxis]
            weight = tf.ones_like(positive)
            if sample_weight is not None:
                weight = sample_weight[own.first : own.last, tf.newaxis]
                weight = tf.cast(weight, positive.dtype)

            def by_rows() -> tuple[tf.Tensor, tf.Tensor]:
                scores = tf.matmul(part, candidates, transpose_b=True)
                if column_bias is not None:
                    scores = tf.nn.bias_add(scores, column_bias)
                if margin is not None:
                    scores = margin.added_to(scores, start, stop)
                if adjust is not None:
                    scores = adjust(scores, start, stop)
                scores = _hide(scores, hidden)
                # A row's positives can lie so far apart that no one shift keeps all
                # their sums in range. So the row's negatives are shifted by the
                # greatest of them or the lowest positive, the sum of a higher positive
                # by that positive.
                row_top = tf.maximum(
                    tf.reduce_max(scores, axis=1, keepdims=True), own.lowest(positive)
                )
                return tf.exp(scores - row_top), row_top

            def by_one_shift(shift: _Shift) -> tuple[tf.Tensor, tf.Tensor]:
                # Product, shift and exponential are one operation, which never writes
                # the scores themselves.
                bias = tf.zeros([columns]) if column_bias is None else column_bias
                products = tf.matmul(part, candidates, transpose_b=True)
                share = tf.sigmoid(tf.nn.bias_add(products, bias - shift.value))
                if margin is not None:
                    share = margin.as_factors_of(share, start, stop)
                return _zero(share, hidden), tf.fill([stop - start, 1], shift.value)

            # Left unnormalised: d columns are divided instead of all of them.
            share, row_top = (  # [r, columns], [r, 1]
                by_rows()
                if shift is None
                else tf.cond(shift.fits, lambda: by_one_shift(shift), by_rows)
            )
            row_top = own.spread(row_top)
            top = tf.maximum(row_top, positive)
            further = [values[own.first : own.last, tf.newaxis] for values in extras]
            for values in further:
                top = tf.maximum(top, values)
            lowered = tf.exp(row_top - top)  # exactly 1 for the only one of a row
            positive_share = tf.exp(positive - top)
            negatives = tf.reduce_sum(share, axis=1, keepdims=True)
            norm = own.spread(negatives) * lowered + positive_share
            further = [tf.exp(values - top) for values in further]
            norm = sum(further, norm)
            total += tf.reduce_sum(weight * (tf.math.log(norm) + top - positive))
            scale = weight / norm
            pull = scale * positive_share - weight  # of the positive, <= 0
            if further:
                pulls = tf.squeeze(scale * further[0], axis=1)
                extra_parts = extra_parts.write(number, pulls)
            scale = own.sum(scale * lowered)  # [r, 1]
            parts = parts.write(
                number,
                scale * tf.matmul(share, candidates) + own.sum(pull * vectors),
            )
            # [d, columns]: faster than with the large factor transposed.
            transposed += tf.matmul(scale * part, share, transpose_a=True)
            candidate_gradient = own.add_to(candidate_gradient, pull * owners)
            return number + 1, total, parts, extra_parts, candidate_gradient, transposed

        count = tf.maximum((rows + chunk - 1) // chunk, 1)
        _, total, parts, extra_parts, candidate_gradient, transposed = tf.while_loop(
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
                tf.TensorArray(
                    queries.dtype, count, infer_shape=False, element_shape=[None]
                ),
                tf.zeros_like(candidates),
                tf.zeros_like(tf.transpose(candidates)),
            ),
            parallel_iterations=1,  # or several chunks would be held at once
        )
        query_gradient = tf.reshape(parts.concat(), tf.shape(queries))

        candidate_gradient += tf.transpose(transposed)
        gradients = [query_gradient, candidate_gradient]
        gradients += [tf.reshape(extra_parts.concat(), tf.shape(p)) for p in extras]

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            return [upstream * part for part in gradients]

        return total, gradient

    return loss_of(queries, candidates, *([] if extra is None else [extra]))


class _Diagonal:
    """The positives of rows [start, stop) where row r has column r.

    Attributes:
      first: the chunk's positives are numbers `first` to `last` - 1 of all.
      last: see `first`.
      pairs: int32 [p, 2] of (row - start, column).
    """

    def __init__(self, start: tf.Tensor, stop: tf.Tensor) -> None:
        self.first, self.last = start, stop
        self.pairs = tf.stack([tf.range(stop - start), tf.range(start, stop)], axis=1)

    def vectors(self, candidates: tf.Tensor) -> tf.Tensor:
        """Returns the positives' vectors, [p, d]."""
        return candidates[self.first : self.last]

    def spread(self, values: tf.Tensor) -> tf.Tensor:
        """Returns for every positive what its row has, [r, ...] -> [p, ...]."""
        return values

    def sum(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the sums over the positives of every row, [p, k] -> [r, k]."""
        return values

    def lowest(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the least of every row, the greatest float where it has none."""
        return values

    def add_to(self, gradient: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Adds every positive's values [p, d] to its column of [columns, d]."""
        ends = [self.first, tf.shape(gradient)[0] - self.last]
        return gradient + tf.pad(values, [ends, [0, 0]])


class _Listed(_Diagonal):
    """The positives of rows [start, stop) among (row, column) sorted by row."""

    def __init__(self, positives: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> None:
        self.first, self.last, self.pairs = _pairs_of(positives, start, stop)
        self.rows, self.columns = tf.unstack(self.pairs, axis=1)
        self.size = stop - start

    def vectors(self, candidates: tf.Tensor) -> tf.Tensor:
        return tf.gather(candidates, self.columns)

    def spread(self, values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, self.rows)

    def sum(self, values: tf.Tensor) -> tf.Tensor:
        # Not the unsorted kind, whose order of additions may differ between runs.
        sums = tf.math.segment_sum(values, self.rows)  # up to the last row that has any
        return tf.pad(sums, [[0, self.size - tf.shape(sums)[0]], [0, 0]])

    def lowest(self, values: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_min(values, self.rows, self.size)

    def add_to(self, gradient: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return _add_in_place(gradient, self.columns[:, tf.newaxis], values)


@dataclass(frozen=True)
class _Shift:
    """One number that all scores may be lowered by before the exponential.

    Attributes:
      value: float scalar, so much that exponentials are sigmoids.
      fits: bool scalar, whether every exponential is then a float above 0, by what
        lengths of vectors allow.
    """

    value: tf.Tensor
    fits: tf.Tensor

    @classmethod
    def of(
        cls,
        queries: tf.Tensor,
        candidates: tf.Tensor,
        *biases: tf.Tensor | None,
    ) -> _Shift:
        longest = [
            tf.sqrt(tf.reduce_max(tf.reduce_sum(tf.square(vectors), axis=1)))
            for vectors in (queries, candidates)
        ]
        lowest = highest = tf.zeros([])
        for bias in biases:
            if bias is not None:
                # What is excluded has a sigmoid of exactly 0.
                real = tf.where(bias > EXCLUDED / 2, bias, 0.0)
                lowest = tf.minimum(lowest, tf.reduce_min(real))
                highest = tf.maximum(highest, tf.reduce_max(real))
        most = longest[0] * longest[1]
        return cls(most + highest - _TAIL, 2.0 * most + highest - lowest <= _SPAN)


def _hide(scores: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """Returns scores [rows, columns] with those of some (row, column) excluded."""
    low = tf.fill([tf.shape(pairs)[0]], tf.constant(EXCLUDED, scores.dtype))
    return _add_in_place(scores, pairs, low)


def _zero(shares: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """Returns shares [rows, columns] with 0 at some (row, column).

    Exactly 0, however often a place is listed: beside so large a power of two a share
    is lost to rounding, and multiples of it are added without any. What subtraction
    of the share itself leaves can be more than all other shares of the row.
    """
    large = tf.fill([tf.shape(pairs)[0]], _LARGE)
    return _add_in_place(_add_in_place(shares, pairs, -large), pairs, large)


def _add_in_place(values: tf.Tensor, places: tf.Tensor, added: tf.Tensor) -> tf.Tensor:
    """As `tf.tensor_scatter_nd_add`, which on CPU copies its input in any case."""
    return tf.raw_ops.ScatterNdNonAliasingAdd(
        input=values, indices=places, updates=added
    )


def _hidden_in(
    excluded_pairs: tf.Tensor | None,
    positives: tf.Tensor,
    start: tf.Tensor,
    stop: tf.Tensor,
) -> tf.Tensor:
    """Returns (row - start, column) of the positives and excluded pairs, [n, 2]."""
    if excluded_pairs is None:
        return positives
    pairs = _pairs_of(excluded_pairs, start, stop)[2]
    return tf.concat([positives, pairs], axis=0)


def _pairs_of(
    pairs: tf.Tensor, start: tf.Tensor, stop: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns first, last and (row - start, column) of the pairs of [start, stop)."""
    first, last = tf.unstack(tf.searchsorted(pairs[:, 0], [start, stop]))
    return first, last, pairs[first:last] - tf.stack([start, tf.zeros_like(start)])
