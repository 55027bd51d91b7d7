"""Vectors of bounded length, block by block."""

from __future__ import annotations

import tensorflow as tf

_TINY = 1e-12  # of squared lengths, so that a vector of zeros stays one


def bounded(vectors: tf.Tensor, slack: tf.Tensor | float = 0.0) -> tf.Tensor:
    r"""Returns `vectors / sqrt(|vectors|^2 + slack)`, length 1 or below.

    Inner products of vectors of length 1 are cosines: frequent items and active users
    cannot win by length, which in a log of few events per item is what a network
    learns first and overfits. The loss divides by its `temperature`.

    A candidate has one vector for all objectives, in which the blocks of earlier
    stages are fixed. So length 1 can be asked of the first block alone, and not of
    the whole; the blocks of later stages have few dimensions, a single one at times,
    and with `slack` 1 keep their length as long as it is small (our reading).

    Args:
      vectors: float [..., d].
      slack: >= 0, shape broadcastable to [..., 1].

    Example:
      >>> print(bounded(tf.constant([[3.0, 4.0], [0.0, 0.0]])).numpy())
      [[0.6 0.8]
       [0.  0. ]]
      >>> print(bounded(tf.constant([[1.0]]), 1.0).numpy().round(3))
      [[0.707]]

    References:
      Yi et al., Sampling-bias-corrected neural modeling for large corpus item
      recommendations, RecSys '19 (normalisation and temperature).
    """
    square = tf.reduce_sum(tf.square(vectors), axis=-1, keepdims=True)
    # Graphs turn a division by a root into a product with the reciprocal root, which
    # rounds otherwise; this one they leave alone.
    return tf.math.divide_no_nan(vectors, tf.sqrt(square + slack + _TINY))


def block_slack(stage: int) -> float:
    """Returns the `slack` of a stage's block of the candidate vectors."""
    return 0.0 if stage == 0 else 1.0
