"""Sampled softmax as a TFRS task."""

from __future__ import annotations

from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.losses.chunked_softmax import (
    EXCLUDED,
    AdjustScores,
    RowMargins,
    chunked_softmax,
)

# [rows, columns], or its rows as they are needed.
Margin: TypeAlias = "tf.Tensor | RowMargins"


class SampledSoftmax(tfrs.tasks.Retrieval):
    """`tfrs.tasks.Retrieval` with an unclipped correction, margins and masks.

    Takes the arguments of `tfrs.tasks.Retrieval` and returns the same loss (sum
    over positives) wherever that one is right. Differences:

    - the sampling correction is not clipped at 1e-6, which flattens the tail of
      large catalogues;
    - with `correct_positives=False` the positive keeps its own logit and
      negatives are divided by their *expected count* `draws * p`, with `draws`
      all columns but the row's positive (`sum(candidate_counts) - n / rows` for n
      positives in all; at least 1). Then the denominator is an unbiased estimate
      of the full softmax's: `exp(s_i) + sum_j exp(s_j) / E[count_j]`. TFRS
      corrects the positive as well
      (`correct_positives=True`, the default here), which gives rare positives
      too little gradient;
    - any column can be left out of a row, by `score_mask` or `excluded_pairs`;
    - a row may have any number of positives (`positives`), and a column may stand
      for several draws (`candidate_counts`);
    - `margin` is added to the logits of negatives;
    - scores and their gradient are computed a chunk of rows at a time, without a
      [rows, columns] matrix (unless batch metrics or `num_hard_negatives` ask for
      all scores).

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
        margin: Margin | None = None,
        excluded_pairs: tf.Tensor | None = None,
        positives: tf.Tensor | None = None,
        candidate_counts: tf.Tensor | None = None,
        draws: tf.Tensor | None = None,
        extra: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Computes the loss.

        Args:
          query_embeddings: float [rows, d].
          candidate_embeddings: float [columns, d]. Without `positives` columns >=
            rows: the positive of row r is column r, further columns are extra
            negatives.
          sample_weight: float [n], n the number of positives, by default `rows`.
          candidate_sampling_probability: float [columns], the probability that
            one draw of a negative gives this candidate; > 0.
          candidate_ids: [columns], any dtype.
          compute_metrics: as in TFRS.
          compute_batch_metrics: as in TFRS.
          score_mask: bool [rows, columns]; false columns are left out, the
            positive never is.
          margin: float [rows, columns], added to negatives' logits; or what makes
            its rows as they are needed, so that the whole is never held. No gradient
            flows into it.
          excluded_pairs: int32 [n, 2] of (row, column) sorted by row, left out as
            by `score_mask`: for masks with few false entries.
          positives: int32 [n, 2] of (row, column) sorted by row, any number per row.
            A row's positives are no negatives of each other and share its negatives:
            the loss is that of one row per positive, only cheaper. Not together with
            `num_hard_negatives`, `remove_accidental_hits` or batch metrics.
          candidate_counts: float [columns] >= 0, how many draws each column stands
            for (default: 1 each): a batch that lists a candidate once has the loss
            of one that repeats it. The logarithm is added to negatives' logits; a
            column of 0 draws is no negative.
          draws: float scalar > 0, all draws of negatives that the columns stand for.
            By default the columns are other rows' positives and extra draws, so that a
            row's own positives are no draws; see the class.
          extra: float [n], the logarithm of what further negatives of each positive
            add to its denominator, temperature and correction applied; see
            `own_negatives`. Not together with `num_hard_negatives` or batch metrics.

        Returns:
          The loss summed over positives, a float scalar.

        Raises:
          ValueError: if `positives` is combined with what does not take it, or
            `candidate_ids` lacks where hits are to be removed.
        """
        use_batch_metrics = compute_batch_metrics and bool(self._batch_metrics)
        if positives is not None:
            self._check_takes_positives(use_batch_metrics)
        if extra is not None and (self.num_hard_negatives or use_batch_metrics):
            raise ValueError(
                "`extra` should not be combined with num_hard_negatives or batch "
                "metrics. Received both. Pass compute_batch_metrics=False."
            )
        if self.temperature is not None:
            query_embeddings = query_embeddings / self.temperature
        column_bias, positive_bias = self._biases(
            candidate_sampling_probability,
            candidate_counts,
            positives,
            tf.shape(query_embeddings)[0],
            draws,
        )
        hit_ids = self._hit_ids(candidate_ids)
        arguments = (query_embeddings, candidate_embeddings, column_bias, positive_bias)

        def adjust(scores: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
            if hit_ids is not None:
                hits = tf.equal(hit_ids[start:stop, tf.newaxis], hit_ids)
                scores = tf.where(hits, EXCLUDED, scores)
            if score_mask is not None:
                scores = tf.where(score_mask[start:stop], scores, EXCLUDED)
            return scores

        if margin is not None and not isinstance(margin, RowMargins):
            margin = _by_rows(margin)
        masked = hit_ids is not None or score_mask is not None
        if self.num_hard_negatives or use_batch_metrics:
            scores = _all_scores(*arguments, excluded_pairs, adjust, margin)
            loss = self._reduce(scores, sample_weight)
        else:
            scores = None
            loss = chunked_softmax(
                *arguments,
                sample_weight,
                excluded_pairs,
                adjust if masked else None,
                positives,
                extra,
                margin,
            )
        self._update_metrics(
            loss,
            scores,
            (query_embeddings, candidate_embeddings, candidate_ids, sample_weight),
            positives,
            compute_metrics,
        )
        return loss

    def _check_takes_positives(self, use_batch_metrics: bool) -> None:
        for name, used, advice in (
            ("num_hard_negatives", self.num_hard_negatives, "Leave it out"),
            (
                "remove_accidental_hits",
                self.remove_accidental_hits,
                "List every candidate once, with `candidate_counts`",
            ),
            ("batch metrics", use_batch_metrics, "Pass compute_batch_metrics=False"),
        ):
            if used:
                raise ValueError(
                    f"`positives` should not be combined with {name}. Received both. "
                    f"{advice}, or give one row per positive."
                )

    def _biases(
        self,
        probability: tf.Tensor | None,
        counts: tf.Tensor | None,
        positives: tf.Tensor | None,
        rows: tf.Tensor,
        draws: tf.Tensor | None,
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Returns what is added to the logits of negatives and of positives."""
        repeated = None
        if counts is not None:
            # Finite where nothing was drawn.
            repeated = tf.where(counts > 0, tf.math.log(counts), EXCLUDED)
        if probability is None:
            return repeated, None
        bias, positive_bias = -tf.math.log(probability), None
        if self.correct_positives:
            positive_bias = (
                bias[:rows] if positives is None else tf.gather(bias, positives[:, 1])
            )
        elif draws is not None:
            bias -= tf.math.log(draws)
        else:
            draws = tf.cast(tf.size(bias), bias.dtype)
            if counts is not None:
                draws = tf.reduce_sum(counts)
            number = rows if positives is None else tf.shape(positives)[0]
            # A row's own positives are no draws of negatives: their mean number.
            draws -= tf.cast(number, bias.dtype) / tf.cast(rows, bias.dtype)
            bias -= tf.math.log(tf.maximum(draws, 1.0))
        return bias if repeated is None else bias + repeated, positive_bias

    def _hit_ids(self, candidate_ids: tf.Tensor | None) -> tf.Tensor | None:
        if not self.remove_accidental_hits:
            return None
        if candidate_ids is None:
            raise ValueError(
                "`candidate_ids` should be given when `remove_accidental_hits` is set. "
                "Received: None."
            )
        return tf.convert_to_tensor(candidate_ids)

    def _reduce(self, scores: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
        rows = tf.shape(scores)[0]
        positives = tf.linalg.diag_part(scores[:, :rows])
        if self.num_hard_negatives:
            count = tf.minimum(self.num_hard_negatives, tf.shape(scores)[1] - 1)
            negatives = tf.linalg.set_diag(
                scores, tf.fill(tf.shape(positives), tf.constant(2 * EXCLUDED))
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
        scores: tf.Tensor | None,
        inputs: tuple[Any, ...],
        positives: tf.Tensor | None,
        compute_metrics: bool,
    ) -> None:
        queries, candidates, candidate_ids, sample_weight = inputs
        for metric in self._loss_metrics:
            metric.update_state(loss)
        rows = tf.shape(queries)[0]
        if compute_metrics and self._factorized_metrics:
            chosen = tf.range(rows) if positives is None else positives[:, 1]
            if positives is not None:
                queries = tf.gather(queries, positives[:, 0])
            ids = None if candidate_ids is None else tf.gather(candidate_ids, chosen)
            for metric in self._factorized_metrics:
                metric.update_state(
                    queries,
                    tf.gather(candidates, chosen),
                    true_candidate_ids=ids,
                    sample_weight=sample_weight,
                )
        if scores is not None:
            labels = tf.eye(rows, tf.shape(scores)[1])
            for metric in self._batch_metrics:
                metric.update_state(labels, scores, sample_weight=sample_weight)


def _by_rows(margin: tf.Tensor) -> RowMargins:
    return RowMargins(lambda start, stop: margin[start:stop])


def _all_scores(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    column_bias: tf.Tensor | None,
    positive_bias: tf.Tensor | None,
    excluded_pairs: tf.Tensor | None,
    adjust: AdjustScores,
    margin: RowMargins | None,
) -> tf.Tensor:
    """Returns the logits as `chunked_softmax` takes them, float [rows, columns]."""
    scores = tf.matmul(queries, candidates, transpose_b=True)
    rows = tf.shape(scores)[0]
    positives = tf.linalg.diag_part(scores[:, :rows])
    if positive_bias is not None:
        positives += positive_bias
    if column_bias is not None:
        scores += column_bias
    if margin is not None:
        scores = margin.added_to(scores, tf.constant(0), rows)
    scores = adjust(scores, tf.constant(0), rows)
    if excluded_pairs is not None:
        hidden = tf.fill([tf.shape(excluded_pairs)[0]], EXCLUDED)
        scores = tf.tensor_scatter_nd_update(scores, excluded_pairs, hidden)
    # Written last, so that neither mask nor margin ever touches the positive.
    return tf.linalg.set_diag(scores, positives)
