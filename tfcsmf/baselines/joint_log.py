"""Training on all objectives at once: one log, and batches that mix objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.batch_rows import Batch
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import joint_lessons
from tfcsmf.data.lists import union_lists
from tfcsmf.data.prepared import PreparedLog


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
    sizes = np.array([len(log.train[part].pairs) for part in log.objectives])
    if one_score:
        lists = [log.known[objective] for objective in log.objectives]
        whole = union_lists(lists, log.items.size)
        log = replace(log, known=dict.fromkeys(log.objectives, whole))
    lessons = joint_lessons(log, 1.0 / np.maximum(sizes, 1))
    first = log.objectives[0]
    return JointLog(
        replace(
            log,
            objectives=(name,),
            train={name: lessons.log.train[first]},
            known={name: lessons.log.known[first]},
        ),
        name,
        log.objectives,
        lessons.labels,
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
