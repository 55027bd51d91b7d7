"""What is known of a whole log while its shards are prepared one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tfcsmf.data import splits
from tfcsmf.data.carving import TrainingPairs
from tfcsmf.data.sharded.bucket import Bucket

ShardKeys = Mapping[int, np.ndarray]  # shard -> pair keys in its own codes


@dataclass(frozen=True)
class Vocabulary:
    """Where every id of the log and its side table is in the entity table.

    Attributes:
      ids: sorted.
      positions: int32, likewise.
      trained: number of leading positions with enough training events.
      met: number of leading positions with any.
    """

    ids: pl.Series
    positions: np.ndarray
    trained: int
    met: int

    def positions_of(self, ids: pl.Series) -> np.ndarray:
        """Returns the positions of some of the ids, int32 [n]."""
        return self.positions[self.ids.search_sorted(ids).to_numpy()]


@dataclass(frozen=True)
class Plan:
    """Decisions about the whole log; every round adds to it.

    Attributes:
      objectives: in cascade order.
      histories: history events.
      names: all events, the objectives first.
      method: how the log is split.
      test_share: as in the configuration.
      seed: of the random choices.
      rows_per_user: as in the configuration.
      boundaries: first times of validation and test (`splits.time_boundaries`).
      spared: pairs that the random split leaves in training.
      lacking: objectives that take validation pairs from training.
      kept: shard and pair of every objective that stay training.
      taken: validation pairs, by objective.
      users: all users.
      items: the catalogue.
      validation_users: positions of the users whose validation pairs are used, by
        objective; `None` takes all.
      read: counts of what was read, for the summary.
    """

    objectives: tuple[str, ...]
    histories: tuple[str, ...]
    names: tuple[str, ...]
    method: str
    test_share: float
    seed: int
    rows_per_user: int
    boundaries: tuple[int | None, int | None] | None = None
    spared: ShardKeys = field(default_factory=dict)
    lacking: tuple[int, ...] = ()
    kept: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    taken: Mapping[int, ShardKeys] = field(default_factory=dict)
    users: Vocabulary | None = None
    items: Vocabulary | None = None
    validation_users: Mapping[int, np.ndarray | None] = field(default_factory=dict)
    read: Mapping[str, int] = field(default_factory=dict)

    @property
    def history_codes(self) -> list[int]:
        """Codes of the history events."""
        return [self.names.index(name) for name in self.histories]


@dataclass(frozen=True)
class Split:
    """A shard's events with their parts, as far as these are decided.

    Attributes:
      log: the events.
      before: parts before anything was taken for validation.
      part: parts with the validation pairs taken so far.
      pairs: of the training events before.
      taken: validation pairs of this shard, by objective.
      kept: its pairs that stay training, by objective.
    """

    log: splits.CodedLog
    before: np.ndarray
    part: np.ndarray
    pairs: TrainingPairs
    taken: dict[int, np.ndarray]
    kept: dict[int, int]


def split_bucket(bucket: Bucket, plan: Plan) -> Split:
    """Divides the events of a shard as the plan says."""
    log = bucket.coded(plan.names, len(plan.objectives))
    nothing = np.zeros(0, np.int64)
    before = splits.assign(
        log,
        plan.method,
        plan.test_share,
        plan.seed,
        plan.boundaries,
        plan.spared.get(bucket.number, nothing),
    )
    pairs = TrainingPairs(log, before)
    taken = {
        code: keys.get(bucket.number, nothing) for code, keys in plan.taken.items()
    }
    kept = {
        code: key for code, (shard, key) in plan.kept.items() if shard == bucket.number
    }
    return Split(log, before, pairs.mark(before, taken), pairs, taken, kept)
