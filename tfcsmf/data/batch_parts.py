"""Some rows of a batch: what one of several workers computes of it.

The loss of a batch is a sum over its rows, whose negatives are columns that all rows
share. A worker takes some rows with all columns: the sum of such losses over the
workers is the loss of the batch, and the sum of their gradients its gradient, whatever
the loss is. Every worker encodes all candidates, so that no vectors are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfcsmf.data.batch_rows import Batch

# Key of a batch: int32 [3], first row, last row (exclusive), and rows of the batch.
PART = "part"
# Key of a part: what its loss has to know of the whole batch, see `part_of_batch`.
WHOLE = "whole"


def part_of_batch(batch: Mapping[str, Any]) -> Batch:
    """Returns a batch with the rows of its part alone, numbered from 0.

    Query inputs are left whole: what training leaves out of them is drawn for all
    rows, so that the draws do not depend on the number of workers.

    Args:
      batch: of `tfcsmf.data.batches.StageBatches`, and a `part`.

    Returns:
      The batch with the `positives`, their `weight` and `own`, `excluded_pairs` and
      `known` of the part.
      `whole` has the number of `rows` of the whole batch and the `columns` of all its
      positives.
    """
    first, last, rows = tf.unstack(batch[PART])
    positives, pairs = batch["positives"], batch["excluded_pairs"]
    begin, end = tf.unstack(tf.searchsorted(positives[:, 0], [first, last]))
    others = tf.searchsorted(pairs[:, 0], [first, last])
    shift = tf.stack([first, 0])
    part = {
        **batch,
        "positives": positives[begin:end] - shift,
        "excluded_pairs": pairs[others[0] : others[1]] - shift,
        WHOLE: {"rows": rows, "columns": positives[:, 1]},
    }
    if "weight" in batch:
        part["weight"] = batch["weight"][begin:end]
    if "own" in batch:
        part["own"] = {name: value[begin:end] for name, value in batch["own"].items()}
    if "known" in batch:
        part["known"] = batch["known"][first:last]
    return part
