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
    rows = tf.shape(upstream_scores)[0]
    own = positives
    if own is None:
        own = tf.linalg.diag_part(upstream_scores[:, :rows])
    leads = upstream_scores - own[:, tf.newaxis]
    margin = margin_of_leads(leads, form, strength, maximum)
    if positives is None:
        margin = tf.linalg.set_diag(margin, tf.zeros([rows], margin.dtype))
    return margin


def margin_of_leads(
    leads: tf.Tensor, form: MarginForm, strength: float, maximum: float = 5.0
) -> tf.Tensor:
    """Returns `adaptive_margin` by how far upstream ranks negatives above positives.

    Args:
      leads: float, any shape: s(u, j) - s(u, i).
      form: see `adaptive_margin`; not `none`.
      strength: see `adaptive_margin`.
      maximum: see `adaptive_margin`.

    Raises:
      ValueError: for an unknown form.

    Example:
      >>> margin_of_leads(tf.constant([-2.0, 1.0]), "order", 0.5).numpy().tolist()
      [1.0, 0.0]
    """
    leads = tf.stop_gradient(leads)
    if form == "confusable":
        return strength * tf.sigmoid(leads)
    if form == "order":
        return strength * tf.clip_by_value(-leads, 0.0, maximum)
    raise ValueError(
        f"`form` should be 'none', 'confusable' or 'order'. Received: {form!r}."
    )


def largest_margin(form: MarginForm, strength: float, maximum: float = 5.0) -> float:
    """Returns what no margin is greater than; arguments as in `adaptive_margin`."""
    if form == "none":
        return 0.0
    return strength * (maximum if form == "order" else 1.0)
