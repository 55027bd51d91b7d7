"""Fusing the objectives of a request into one query vector."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def fuse(
    query_vectors: np.ndarray | tf.Tensor,
    weights: np.ndarray | tf.Tensor,
    scales: np.ndarray | tf.Tensor,
) -> tf.Tensor:
    r"""Returns the query whose inner products are the weighted sums of objectives.

    With the query vector u^(o) of objective o and a candidate v, the calibrated
    score of the objective is `s_o = <u^(o), v> / scale_o`. Inner products are
    linear, hence

        sum_o w_o s_o = <q, v>   with   q = sum_o (w_o / scale_o) u^(o),

    exactly and for any weights: one query against one index, built once.

    Args:
      query_vectors: float [B, S, d], one vector per objective.
      weights: float [B, S] or [S]; negative ones demote an objective.
      scales: float [S], positive (`objective_scales`).

    Returns:
      float32 [B, d].

    Example:
      >>> vectors = np.float32([[[1, 0], [0, 4]]])
      >>> fuse(vectors, np.float32([3, 1]), np.float32([1, 2])).numpy().tolist()
      [[3.0, 2.0]]

    References:
      CSMF, arXiv 2504.12920: weights may change per request; that the candidate
      vector is shared and the query side alone depends on them is our reading.
    """
    shares = tf.cast(weights, tf.float32) / tf.cast(scales, tf.float32)
    vectors = tf.cast(query_vectors, tf.float32)
    return tf.reduce_sum(vectors * shares[..., tf.newaxis], axis=1)
