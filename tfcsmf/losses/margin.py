"""AML: a margin per negative, set by the frozen previous stage."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

MarginForm = Literal["none", "confusable", "order"]


def adaptive_margin(
    upstream_scores: tf.Tensor,
    form: MarginForm,
    strength: float,
    maximum: float = 5.0,
    positives: tf.Tensor | None = None,
) -> tf.Tensor | None:
    r"""Returns the additive margin m_uj of every negative, or `None` for none.

    With upstream scores s(u, j) of the previous, frozen stage and the positive
    i of each row:

    - `confusable`: `strength * sigmoid(s(u,j) - s(u,i))`, large where upstream
      ranks the negative above the positive;
    - `order`: `strength * clip(s(u,i) - s(u,j), 0, maximum)`, which keeps an
      order upstream is already sure of.

    No gradient flows into the margin. It is meant for negatives: the loss never
    adds it to a positive.

    Args:
      upstream_scores: float [rows, columns].
      form: see above; `none` has no margin.
      strength: lambda >= 0; 0 gives `None`, so the loss is the plain one bit for
        bit.
      maximum: cap of the `order` form, in units of upstream scores.
      positives: float [rows], upstream scores of the positives; by default that of
        row r is column r, and its margin is 0. For rows with several positives the
        reference is the mean of their upstream scores (our reading).

    Example:
      >>> scores = tf.constant([[0.0, 0.0]])
      >>> adaptive_margin(scores, "confusable", 2.0).numpy().tolist()
      [[0.0, 1.0]]

    References:
      CSMF, arXiv 2504.12920: the cross-stage adaptive margin loss exists and is
      ablated; the formula is our reading.
    """
    if form == "none" or strength == 0.0:
        return None
    scores = tf.stop_gradient(upstream_scores)
    rows = tf.shape(scores)[0]
    given = positives is not None
    if positives is None:
        positives = tf.linalg.diag_part(scores[:, :rows])
    own = tf.stop_gradient(positives)[:, tf.newaxis]
    if form == "confusable":
        margin = tf.sigmoid(scores - own)
    elif form == "order":
        margin = tf.clip_by_value(own - scores, 0.0, maximum)
    else:
        raise ValueError(
            f"`form` should be 'none', 'confusable' or 'order'. Received: {form!r}."
        )
    if not given:
        margin = tf.linalg.set_diag(margin, tf.zeros([rows], margin.dtype))
    return strength * margin
