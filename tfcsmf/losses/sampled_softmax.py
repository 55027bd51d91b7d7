"""Sampled softmax as a TFRS task."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

# Low enough that exp() of it is exactly zero beside any real score, and finite, so
# that a row without negatives has loss 0 and no NaN gradient.
_EXCLUDED = -1e9


class SampledSoftmax(tfrs.tasks.Retrieval):
    """`tfrs.tasks.Retrieval` with an unclipped correction, margins and masks.

    Takes the arguments of `tfrs.tasks.Retrieval` and returns the same loss (sum
    over rows) wherever that one is right. Differences:

    - the sampling correction is not clipped at 1e-6, which flattens the tail of
      large catalogues;
    - with `correct_positives=False` the positive keeps its own logit and
      negatives are divided by their *expected count* `(columns - 1) * p`. Then
      the denominator is an unbiased estimate of the full softmax's: `exp(s_i) +
      sum_j exp(s_j) / E[count_j]`. TFRS corrects the positive as well
      (`correct_positives=True`, the default here), which gives rare positives
      too little gradient;
    - accidental hits are removed without a dense label matrix, and any other
      column through `score_mask`;
    - `margin` is added to the logits of negatives.

    Args:
      correct_positives: see above.
      remove_accidental_hits: drop columns whose id equals the row's positive.
      temperature: scores are divided by it.
      **kwargs: the other arguments of `tfrs.tasks.Retrieval`, but for `loss`.

    Raises:
      ValueError: if `loss` is given.

    Example:
      >>> task = SampledSoftmax()
      >>> loss = task(tf.zeros([2, 3]), tf.zeros([2, 3]))  # 2 ln 2
      >>> round(float(loss), 4)
      1.3863

    References:
      Yi et al., Sampling-bias-corrected neural modeling for large corpus item
      recommendations, RecSys '19; Yang et al., Mixed negative sampling, WWW '20.
    """

    def __init__(
        self,
        *args: Any,
        temperature: float | None = None,
        num_hard_negatives: int | None = None,
        remove_accidental_hits: bool = False,
        correct_positives: bool = True,
        **kwargs: Any,
    ) -> None:
        if (args and args[0] is not None) or kwargs.get("loss") is not None:
            raise ValueError(
                "`loss` should be left out: this task computes its softmax itself. "
                "Use `tfrs.tasks.Retrieval` for another loss. "
                f"Received: {args[0] if args else kwargs['loss']}."
            )
        super().__init__(
            *args,
            temperature=temperature,
            num_hard_negatives=num_hard_negatives,
            remove_accidental_hits=remove_accidental_hits,
            **kwargs,
        )
        self.temperature = temperature
        self.num_hard_negatives = num_hard_negatives
        self.remove_accidental_hits = remove_accidental_hits
        self.correct_positives = correct_positives

    def call(
        self,
        query_embeddings: tf.Tensor,
        candidate_embeddings: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        candidate_sampling_probability: tf.Tensor | None = None,
        candidate_ids: tf.Tensor | None = None,
        compute_metrics: bool = True,
        compute_batch_metrics: bool = True,
        score_mask: tf.Tensor | None = None,
        margin: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Computes the loss.

        Args:
          query_embeddings: float [rows, d].
          candidate_embeddings: float [columns, d], columns >= rows: the positive
            of row r is column r, further columns are extra negatives.
          sample_weight: float [rows].
          candidate_sampling_probability: float [columns], the probability that
            one draw of a negative gives this candidate; > 0.
          candidate_ids: [columns], any dtype.
          compute_metrics: as in TFRS.
          compute_batch_metrics: as in TFRS.
          score_mask: bool [rows, columns]; false columns are left out, the
            positive never is.
          margin: float [rows, columns], added to negatives' logits.

        Returns:
          The loss summed over rows, a float scalar.
        """
        scores = tf.matmul(query_embeddings, candidate_embeddings, transpose_b=True)
        if self.temperature is not None:
            scores = scores / self.temperature
        rows, columns = tf.shape(scores)[0], tf.shape(scores)[1]
        positives = tf.linalg.diag_part(scores[:, :rows])
        if candidate_sampling_probability is not None:
            log_q = tf.math.log(candidate_sampling_probability)
            if self.correct_positives:
                positives = positives - log_q[:rows]
            else:
                log_q += tf.math.log(tf.cast(tf.maximum(columns - 1, 1), tf.float32))
            scores = scores - log_q
        if margin is not None:
            scores = scores + margin
        if self.remove_accidental_hits:
            scores = tf.where(_hits(candidate_ids, rows), _EXCLUDED, scores)
        if score_mask is not None:
            scores = tf.where(score_mask, scores, _EXCLUDED)
        # Written last, so that neither mask nor margin ever touches the positive.
        scores = tf.linalg.set_diag(scores, positives)
        loss = self._reduce(scores, positives, sample_weight)
        self._update_metrics(
            loss,
            scores,
            (query_embeddings, candidate_embeddings, candidate_ids, sample_weight),
            compute_metrics,
            compute_batch_metrics,
        )
        return loss

    def _reduce(
        self,
        scores: tf.Tensor,
        positives: tf.Tensor,
        sample_weight: tf.Tensor | None,
    ) -> tf.Tensor:
        if self.num_hard_negatives is not None and self.num_hard_negatives > 0:
            count = tf.minimum(self.num_hard_negatives, tf.shape(scores)[1] - 1)
            negatives = tf.linalg.set_diag(
                scores, tf.fill(tf.shape(positives), tf.constant(2 * _EXCLUDED))
            )
            hardest = tf.math.top_k(negatives, count, sorted=False).values
            scores = tf.concat([positives[:, tf.newaxis], hardest], axis=1)
        losses = tf.reduce_logsumexp(scores, axis=1) - positives
        if sample_weight is not None:
            losses = losses * tf.cast(sample_weight, losses.dtype)
        return tf.reduce_sum(losses)

    def _update_metrics(
        self,
        loss: tf.Tensor,
        scores: tf.Tensor,
        inputs: tuple[Any, ...],
        compute_metrics: bool,
        compute_batch_metrics: bool,
    ) -> None:
        queries, candidates, candidate_ids, sample_weight = inputs
        for metric in self._loss_metrics:
            metric.update_state(loss)
        rows = tf.shape(queries)[0]
        if compute_metrics:
            for metric in self._factorized_metrics:
                metric.update_state(
                    queries,
                    candidates[:rows],
                    true_candidate_ids=None
                    if candidate_ids is None
                    else candidate_ids[:rows],
                    sample_weight=sample_weight,
                )
        if compute_batch_metrics and self._batch_metrics:
            labels = tf.eye(rows, tf.shape(scores)[1])
            for metric in self._batch_metrics:
                metric.update_state(labels, scores, sample_weight=sample_weight)


def _hits(candidate_ids: tf.Tensor | None, rows: tf.Tensor) -> tf.Tensor:
    """Marks the columns that hold the row's own positive, bool [rows, columns]."""
    if candidate_ids is None:
        raise ValueError(
            "`candidate_ids` should be given when `remove_accidental_hits` is set. "
            "Received: None."
        )
    return tf.equal(candidate_ids[:rows, tf.newaxis], candidate_ids[tf.newaxis, :])
