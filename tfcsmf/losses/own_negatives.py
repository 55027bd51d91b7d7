"""Negatives that belong to one positive: real ones, and virtual ones between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfcsmf.losses.chunked_softmax import EXCLUDED

# A place in a pair of slots: the positive itself instead of one of its negatives.
POSITIVE = -1
_TINY = 1e-12  # of squared lengths


def own_negatives(
    queries: tf.Tensor,
    positives: tf.Tensor,
    negatives: tf.Tensor,
    added: tf.Tensor,
    pairs: Sequence[tuple[int, int]] = (),
    mix: tf.Tensor | None = None,
    renormalize: bool = False,
    stop_positive: bool = True,
    virtual_weight: float = 1.0,
    hardest: int | None = None,
) -> tf.Tensor:
    r"""Returns the logarithm of what each positive's own negatives add, float [n].

    Over m real negatives j and v virtual ones, all with their corrected logits:

        log(sum_j exp(<q, e_j> + added_j) + weight sum_k exp(l_k))

    Virtual negative k lies between two of the vectors (EDIS), e = a x + (1 - a) y. Its
    logit is the mixture of theirs, a scalar, so that no tower and no product runs
    again: l = a <q, x> + (1 - a) <q, y>. Where scores are cosines e is brought back to
    the length between those of x and y, for which one more product, <x, y>, is enough.
    To l the mixture of what is added to the two is added; next to the positive, what
    is added to the other one (our reading).

    Args:
      queries: float [n, d], the query of every positive, divided by the temperature.
      positives: float [n, d].
      negatives: float [n, m, d].
      added: float [n, m], to logits of real negatives: corrections and margins;
        `EXCLUDED` leaves one out, and every virtual one made of it.
      pairs: (x, y) of every virtual negative: places in 0..m-1, or `POSITIVE` for x.
      mix: float [n, v], a of every virtual negative.
      renormalize: scores are cosines, or of vectors of bounded length.
      stop_positive: virtual negatives do not move the positive's vector.
      virtual_weight: > 0, how often a virtual negative counts.
      hardest: only so many of a positive's negatives count, real and virtual ones
        together, those with the highest logits; `None` for all.

    Example:
      >>> q, p = tf.constant([[1.0]]), tf.constant([[3.0]])
      >>> e, no = tf.constant([[[0.0], [2.0]]]), tf.zeros([1, 2])
      >>> own_negatives(q, p, e, no, [(0, 1)], tf.constant([[0.5]])).numpy().round(4)
      array([2.4076], dtype=float32)

    The logits are 0, 2 and, half way, 1: log(1 + e^2 + e).

    References:
      ESANS, arXiv 2502.16077: interpolated virtual negatives (EDIS).
    """
    scores = tf.linalg.matvec(negatives, queries)  # [n, m]
    logits = scores + added
    if not pairs or mix is None:
        return _log_sum(logits, hardest)
    if stop_positive:
        positives = tf.stop_gradient(positives)
    of_positive = tf.reduce_sum(queries * positives, axis=1, keepdims=True)
    # The positive takes the place after the last.
    last = negatives.shape[1]
    places = [[last if p == POSITIVE else p for p in pair] for pair in pairs]
    first, second = ([pair[side] for pair in places] for side in (0, 1))
    scores = tf.concat([scores, of_positive], axis=1)
    virtual = _between(scores, first, second, mix)
    if renormalize:
        vectors = tf.concat([negatives, positives[:, tf.newaxis]], axis=1)
        virtual *= _stretch(vectors, first, second, mix)
    others = [y if x == last else x for x, y in zip(first, second, strict=True)]
    virtual += _between(added, others, second, mix)
    left_out = tf.minimum(
        tf.gather(added, others, axis=1), tf.gather(added, second, axis=1)
    )
    virtual = tf.where(left_out > EXCLUDED / 2, virtual, EXCLUDED)
    virtual += math.log(virtual_weight)
    return _log_sum(tf.concat([logits, virtual], axis=1), hardest)


def take_rows(values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns `tf.gather(values, rows)` with a gradient summed in a fixed order.

    That of `tf.gather` may add the gradients of a repeated row in any order, and a
    resumed run would not be bit-equal.

    Args:
      values: float [k, d].
      rows: int32 [...].
    """

    @tf.custom_gradient
    def take(values: tf.Tensor) -> tuple[tf.Tensor, object]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            upstream = tf.reshape(upstream, [-1, values.shape[1]])
            places = tf.reshape(rows, [-1, 1])
            return tf.tensor_scatter_nd_add(tf.zeros_like(values), places, upstream)

        return tf.gather(values, rows), gradient

    return take(values)


def _log_sum(logits: tf.Tensor, hardest: int | None) -> tf.Tensor:
    if hardest is not None and hardest < logits.shape[1]:
        logits = tf.math.top_k(logits, hardest, sorted=False).values
    return tf.reduce_logsumexp(logits, axis=1)


def _between(
    values: tf.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    mix: tf.Tensor,
) -> tf.Tensor:
    one, other = (tf.gather(values, places, axis=1) for places in (first, second))
    return mix * one + (1.0 - mix) * other


def _stretch(
    vectors: tf.Tensor, first: Sequence[int], second: Sequence[int], mix: tf.Tensor
) -> tf.Tensor:
    """Returns what brings mixtures to the length between those of the two, [n, v]."""
    squares = tf.reduce_sum(tf.square(vectors), axis=2)
    one, other = (tf.gather(squares, places, axis=1) for places in (first, second))
    product = tf.reduce_sum(
        tf.gather(vectors, first, axis=1) * tf.gather(vectors, second, axis=1), axis=2
    )
    wanted = mix * tf.sqrt(one + _TINY) + (1.0 - mix) * tf.sqrt(other + _TINY)
    square = (
        tf.square(mix) * one
        + tf.square(1.0 - mix) * other
        + 2.0 * mix * (1.0 - mix) * product
    )
    return wanted / tf.sqrt(tf.maximum(square, _TINY))
