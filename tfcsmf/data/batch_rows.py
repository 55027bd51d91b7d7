"""Batches name every table row they use once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID
from tfcsmf.data.rows import NUM_RESERVED

Batch = dict[str, Any]
Inputs = Mapping[str, Any]


def row_blocks(query: Inputs, candidate: Inputs) -> Batch:
    """Numbers the table rows of a batch from 0, so that each is looked up once.

    A batch meets the same ids many times: in histories, among positives, as
    negatives. The towers take the distinct rows out of a table once and look ids up
    in that block; the gradient then has one entry per row as well.

    Args:
      query: encoded query inputs; histories hold candidate rows.
      candidate: encoded candidate inputs.

    Returns:
      `query` and `candidate` with ids that point into `rows`, and `rows`: int [n],
      distinct table rows by id name. Reserved rows come first, as in the table.
    """
    histories = [
        name
        for name, values in query.items()
        if isinstance(values, tf.RaggedTensor) and values.dtype != tf.int64  # no times
    ]
    used = [candidate[CANDIDATE_ID], *(query[name].flat_values for name in histories)]
    candidate_rows, numbers = _distinct(tf.concat(used, axis=0))
    own, *others = tf.split(numbers, [tf.size(part) for part in used])
    query_rows, users = _distinct(query[QUERY_ID])
    local = {
        name: query[name].with_flat_values(part)
        for name, part in zip(histories, others, strict=True)
    }
    return {
        "query": {**query, QUERY_ID: users, **local},
        "candidate": {**candidate, CANDIDATE_ID: own},
        "rows": {QUERY_ID: query_rows, CANDIDATE_ID: candidate_rows},
    }


def _distinct(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the distinct rows, reserved ones first, and each row's number."""
    reserved = tf.range(NUM_RESERVED, dtype=rows.dtype)
    distinct, numbers = tf.unique(tf.concat([reserved, rows], axis=0))
    return distinct, numbers[NUM_RESERVED:]
