"""The loss of a batch, whatever its negatives are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfcsmf.data.batch_parts import WHOLE
from tfcsmf.losses import (
    RowMargins,
    SampledSoftmax,
    largest_margin,
    margin_of_leads,
)
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.losses.own_negatives import own_negatives, take_rows
from tfcsmf.negatives.memory import CandidateMemory, Columns


@dataclass(frozen=True)
class StageNegatives:
    """What a stage's loss has to know of its negatives.

    Attributes:
      pairs: see `NegativeSampler.pairs`.
      stop_positive: see `own_negatives`.
      virtual_weight: see `own_negatives`.
      memory: candidates of earlier batches.
      hardest: see `own_negatives`.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    stop_positive: bool = True
    virtual_weight: float = 1.0
    memory: CandidateMemory | None = None
    hardest: int | None = None


class UpstreamMargin:
    """The margins (AML) of a batch by the scores of the stage before.

    The positive that margins refer to is, in a row of several, their mean.

    Args:
      settings: `form`, `strength` and `maximum` of `adaptive_margin`.
      upstream: float [rows, d], queries of the stage before, by temperature.
      frozen: float [columns, d], the candidates on earlier blocks.
      positives: int32 [n, 2] of (row, column), sorted.
      spare: float [d], 1 in a dimension that is 0 in all of both, else 0.
      due: bool scalar, whether there are margins this time; `None` for always.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        upstream: tf.Tensor,
        frozen: tf.Tensor,
        positives: tf.Tensor,
        spare: tf.Tensor,
        due: tf.Tensor | None = None,
    ) -> None:
        self._settings = settings
        self._frozen = frozen
        self._spare = spare
        self._due = due
        upstream = tf.stop_gradient(upstream)
        rows, columns = tf.unstack(positives, axis=1)
        # The mean of scores is the score of the mean.
        mean = tf.math.segment_mean(tf.gather(frozen, columns), rows)
        reference = tf.reduce_sum(upstream * mean, axis=1, keepdims=True)
        # A candidate with 1 in the spare dimension then has s(u, j) - s(u, i) as its
        # product: no pass over all scores for the difference.
        self._relative = upstream - reference * spare

    def against(self, candidates: tf.Tensor) -> RowMargins:
        """Returns what gives the margins of some rows against frozen candidates."""
        raised = candidates + self._spare
        # oneDNN has products of matrices with bias and sigmoid in one operation.
        zeros = tf.zeros([tf.shape(candidates)[0]])

        def of(start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
            part = self._relative[start:stop]
            leads = tf.matmul(part, raised, transpose_b=True)
            return margin_of_leads(tf.nn.bias_add(leads, zeros), **self._settings)

        return RowMargins(of, largest_margin(**self._settings), self._due)

    def own(self, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Returns the margins of rows [n] and their own columns [n, m]."""
        raised = tf.gather(self._frozen, columns) + self._spare
        leads = tf.linalg.matvec(raised, tf.gather(self._relative, rows))
        margins = margin_of_leads(leads, **self._settings)
        return margins if self._due is None else tf.where(self._due, margins, 0.0)


def batch_loss(
    task: SampledSoftmax,
    batch: Mapping[str, Any],
    query: tf.Tensor,
    candidate: tf.Tensor,
    negatives: StageNegatives,
    *,
    probability: tf.Tensor | None,
    normalized: bool,
    frozen_candidates: tf.Tensor | None = None,
    margin: UpstreamMargin | None = None,
    sample_weight: tf.Tensor | None = None,
    training: bool = False,
) -> tf.Tensor:
    """Returns the mean softmax loss of the positives of a batch.

    Args:
      task: the softmax.
      batch: of `tfcsmf.data.batches.StageBatches`, or a part of one: then its share of
        the loss of the whole.
      query: float [rows, d].
      candidate: float [columns, d].
      negatives: what the batch does not say of them.
      probability: float [C], see `StageBatches.probability`; `None` corrects nothing.
      normalized: scores are products of vectors of bounded length.
      frozen_candidates: float [C, d], what margins score; needed with both a memory
        and a margin.
      margin: of the stage before.
      sample_weight: float [n].
      training: candidates are remembered.
    """
    positives, items, extra = batch["positives"], batch["items"], None
    pool, counts = candidate, batch.get("counts")
    excluded, draws = batch["excluded_pairs"], batch.get("draws")
    if "own" in batch:
        scaled = query if task.temperature is None else query / task.temperature
        extra = _own(
            batch,
            scaled,
            candidate,
            negatives,
            corrected=probability is not None,
            normalized=normalized,
            margin=margin,
        )
        items, pool = items[: batch["pool"]], candidate[: batch["pool"]]
    memory, whole = negatives.memory, batch.get(WHOLE)
    columns = positives[:, 1] if whole is None else whole["columns"]
    number = tf.cast(tf.size(columns), tf.float32)
    rows = tf.shape(query)[0] if whole is None else whole["rows"]
    # A row's own positives are no draws of negatives: their mean number.
    of_row = number / tf.cast(rows, tf.float32)
    if memory is not None:
        remembered = (tf.gather(candidate, columns), tf.gather(items, columns))
        if counts is None:
            counts = tf.ones_like(items, tf.float32)
        found = memory.beside(
            Columns(pool, items, counts, excluded), positives, batch["known"], of_row
        )
        pool, items = found.vectors, found.items
        counts, excluded = found.counts, found.excluded
    if whole is not None and draws is None:
        size = tf.size(items) if counts is None else tf.reduce_sum(counts)
        draws = tf.maximum(tf.cast(size, tf.float32) - of_row, 1.0)
    margins = None
    if margin is not None and frozen_candidates is not None:
        margins = margin.against(tf.gather(frozen_candidates, items))
    loss = task(
        query,
        pool,
        sample_weight=sample_weight,
        candidate_sampling_probability=(
            None if probability is None else tf.gather(probability, items)
        ),
        positives=positives,
        candidate_counts=counts,
        margin=margins,
        excluded_pairs=excluded,
        compute_metrics=False,
        compute_batch_metrics=False,
        draws=draws,
        extra=extra,
    )
    if memory is not None and training:
        memory.push(*remembered)
    return loss / tf.cast(tf.size(columns), loss.dtype)


def _own(
    batch: Mapping[str, Any],
    query: tf.Tensor,
    candidate: tf.Tensor,
    negatives: StageNegatives,
    *,
    corrected: bool,
    normalized: bool,
    margin: UpstreamMargin | None,
) -> tf.Tensor:
    """Returns what the positives' own negatives add, float [n], as a logarithm."""
    own = batch["own"]
    rows, columns = tf.unstack(batch["positives"], axis=1)
    added = own["added"]
    if not corrected:
        # Without a correction every draw counts once.
        added = tf.where(added > EXCLUDED / 2, 0.0, EXCLUDED)
    if margin is not None:
        added += margin.own(rows, own["columns"])
    return own_negatives(
        take_rows(query, rows),
        take_rows(candidate, columns),
        take_rows(candidate, own["columns"]),
        added,
        negatives.pairs,
        own["mix"],
        normalized,
        negatives.stop_positive,
        negatives.virtual_weight,
        negatives.hardest,
    )
