"""Training on all objectives at once: one log, and batches that mix objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.batch_rows import Batch
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.lists import union_lists
from tfcsmf.data.prepared import Csr, Examples, Pairs, PreparedLog
from tfcsmf.evaluation.lists import from_lengths


@dataclass(frozen=True)
class JointLog:
    """A log whose objectives are trained together.

    Attributes:
      log: has one objective, with the examples of all in cascade order; its `known`
        has one list per (objective, user), at row `objective * users + user`.
        Validation and test sets are those of the separate objectives.
      name: of that objective.
      objectives: the separate objectives, in cascade order.
      objective: int32 [n], the number of each example's objective.
    """

    log: PreparedLog
    name: str
    objectives: tuple[str, ...]
    objective: np.ndarray


def join(log: PreparedLog, one_score: bool) -> JointLog:
    """Joins the examples of all objectives.

    Rare objectives are not drowned: all have the same total weight, which is 1 per
    example on average: `w_o = n / (S n_o)` with n_o of the n examples.

    Args:
      log: the prepared log.
      one_score: all objectives share one score. A positive of any of them is then
        never a negative of that user; else only a positive of the same objective.
    """
    name = "+".join(log.objectives)
    parts = [log.train[objective] for objective in log.objectives]
    sizes = np.array([len(part.pairs) for part in parts])
    pairs = Pairs(
        np.concatenate([part.pairs.users for part in parts]),
        np.concatenate([part.pairs.items for part in parts]),
        np.concatenate([part.pairs.times for part in parts]),
    )
    known = [log.known[objective] for objective in log.objectives]
    if one_score:
        known = [union_lists(known, log.items.size)] * len(known)
    weights = sizes.sum() / (len(sizes) * np.maximum(sizes, 1))
    examples = Examples(
        pairs,
        np.concatenate([part.history_end for part in parts]),
        np.repeat(weights.astype(np.float32), sizes),
    )
    return JointLog(
        replace(
            log,
            objectives=(name,),
            train={name: examples},
            known={name: _stacked(known)},
        ),
        name,
        log.objectives,
        np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
    )


class JointBatches(StageBatches):
    """Batches whose examples have different objectives, in the log's proportions.

    A batch has one more entry than those of `StageBatches`: `objective`, int32
    [rows]. In-batch negatives are positives of any objective, and `probability` is
    that of the mixture.

    Args:
      joint: see `join`.
      settings: see `BatchSettings`.
    """

    def __init__(self, joint: JointLog, settings: BatchSettings) -> None:
        super().__init__(
            joint.log, joint.name, settings, joint.objective, joint.objectives
        )

    def _assemble(self, rows: tf.Tensor, stateless: Any) -> Batch:
        batch = super()._assemble(rows, stateless)
        return batch | {"objective": tf.gather(self._labels, rows)}


def _stacked(lists: list[Csr]) -> Csr:
    """Returns the rows of the first, then those of the second, and so on."""
    return from_lengths(
        np.concatenate([np.diff(part.offsets) for part in lists]),
        np.concatenate([part.items for part in lists]),
    )
