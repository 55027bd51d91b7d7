"""Divides events into training, validation and test.

All functions take events as parallel arrays of small integers (`CodedLog`), so
that logs of many million rows are divided without Python loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfcsmf.errors import DataError

TRAIN = 0
VALID = 1  # a validation target
HELD = 2  # no target, but hidden until test time
TEST = 3  # a test target
DROPPED = 4  # hidden throughout

SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
_CARVE, _RANDOM = 1, 2  # distinguish the uses of one seed


@dataclass(frozen=True)
class CodedLog:
    """Events in file order, all arrays [n].

    Attributes:
      users: user codes.
      items: item codes.
      events: event codes; codes below `num_objectives` are the objectives.
      times: int64, larger is later; None if unknown.
      split: `TRAIN`, `VALID` or `TEST` from the file; None without such a column.
      num_objectives: number of objectives.
    """

    users: np.ndarray
    items: np.ndarray
    events: np.ndarray
    times: np.ndarray | None
    split: np.ndarray | None
    num_objectives: int

    @property
    def is_objective(self) -> np.ndarray:
        """Marks the events that are split; the others are only known or not."""
        return self.events < self.num_objectives

    @property
    def pair_keys(self) -> np.ndarray:
        """One number per (user, item) pair, int64 [n]."""
        width = int(self.items.max(initial=0)) + 1
        return self.users.astype(np.int64) * width + self.items


def choose_method(wanted: str, log: CodedLog, time_column: str | None) -> str:
    """Resolves "auto" and checks that the log has what the method needs.

    Raises:
      DataError: if the split column or a usable time is missing.
    """
    times = 0 if log.times is None else len(np.unique(log.times[log.is_objective]))
    if wanted == "auto":
        if log.split is not None:
            return "file"
        if times < 2:
            return "random"
        # Ranks within a user do not compare between users.
        return "leave_last_out" if time_column == "position" else "time"
    if wanted == "file" and log.split is None:
        raise DataError(
            "data.split=file needs a split column. Map it with "
            "--set data.columns.split=<column>, or set data.split=auto."
        )
    if wanted == "time" and times < 2:
        raise DataError(
            "data.split=time needs events at two or more distinct times. Received: "
            f"{times}. Map the time with --set data.columns.time=[<column>], or set "
            "data.split=random."
        )
    return wanted


def assign(log: CodedLog, method: str, share: float, seed: int) -> np.ndarray:
    """Gives every event its part.

    Args:
      log: the events.
      method: "file", "time", "leave_last_out" or "random" (`choose_method`).
      share: share of the objectives' events that becomes test, and validation
        again for "time".
      seed: of the random choice.

    Returns:
      int8 [n], one of `TRAIN`, `VALID`, `HELD`, `TEST`, `DROPPED`. Events that are
      not objectives are never targets: hidden ones are `HELD` or `DROPPED`.
    """
    if method == "file":
        assert log.split is not None  # choose_method
        part = log.split.astype(np.int8)
    elif method == "time":
        part = _by_time(log, share)
    elif method == "leave_last_out":
        part = _leave_last_out(log)
    else:
        part = _at_random(log, share, seed)
    other = ~log.is_objective
    part[other & (part == VALID)] = HELD
    part[other & (part == TEST)] = DROPPED
    return part


def time_boundaries(times: np.ndarray, share: float) -> tuple[int | None, int | None]:
    """Returns where validation and test begin, None for a part that stays empty.

    Each part takes as many of the last distinct times as hold at most `share` of
    the events, but at least one; the first distinct time always stays training.

    Example:
      >>> time_boundaries(np.array([1, 1, 1, 1, 2, 2, 3, 3]), 0.3)
      (2, 3)
    """
    distinct, counts = np.unique(times, return_counts=True)
    if share <= 0:
        return None, None
    after = np.cumsum(counts[::-1])[::-1]  # events at or after a distinct time
    boundaries: list[int | None] = []
    end = len(distinct)
    for _ in range(2):
        rest = after[end] if end < len(distinct) else 0
        fits = np.flatnonzero(after[:end] - rest <= share * len(times))
        begin = int(fits[0]) if fits.size else end - 1
        begin = max(begin, 1)
        if begin >= end:
            boundaries.append(None)
            continue
        boundaries.append(int(distinct[begin]))
        end = begin
    return boundaries[1], boundaries[0]


def _by_time(log: CodedLog, share: float) -> np.ndarray:
    assert log.times is not None  # choose_method
    valid_from, test_from = time_boundaries(log.times[log.is_objective], share)
    part = np.full(len(log.times), TRAIN, np.int8)
    if valid_from is not None:
        part[log.times >= valid_from] = VALID
    if test_from is not None:
        part[log.times >= test_from] = TEST
    return part


def _leave_last_out(log: CodedLog, least: int = 3) -> np.ndarray:
    """The last event per user and objective, if the user has `least` of them."""
    rows = np.flatnonzero(log.is_objective)
    users, events = log.users[rows], log.events[rows]
    times = np.zeros(len(rows), np.int64) if log.times is None else log.times[rows]
    order = np.lexsort((times, events, users))  # stable: ties in row order
    key = users[order].astype(np.int64) * log.num_objectives + events[order]
    _, start, counts = np.unique(key, return_index=True, return_counts=True)
    last = (start + counts - 1)[counts >= least]
    part = np.full(len(log.users), TRAIN, np.int8)
    part[rows[order[last]]] = TEST
    return part


def _at_random(log: CodedLog, share: float, seed: int) -> np.ndarray:
    """Whole (user, item) pairs that hold about `share` of the events."""
    rows = np.flatnonzero(log.is_objective)
    _, pair, counts = np.unique(
        log.pair_keys[rows], return_inverse=True, return_counts=True
    )
    order = np.random.default_rng([seed, _RANDOM]).permutation(len(counts))
    chosen = np.zeros(len(counts), bool)
    chosen[order] = np.cumsum(counts[order]) <= round(share * len(rows))
    part = np.full(len(log.users), TRAIN, np.int8)
    part[rows[chosen[pair]]] = TEST
    return part


def carve(
    log: CodedLog,
    part: np.ndarray,
    objectives: Sequence[int],
    most_users: int,
    share: float,
    seed: int,
) -> np.ndarray:
    """Takes validation pairs out of training.

    Per objective at most one random pair per user, of at most `most_users` users
    and at most `share` of the objective's distinct training pairs. Everything
    else the user did with a chosen item becomes `HELD`. A user keeps at least one
    training event, and an objective at least one training pair.

    Args:
      log: the events.
      part: as `assign` returned it.
      objectives: codes of the objectives that need validation pairs.
      most_users: largest number of pairs per objective.
      share: largest share of the objective's distinct pairs.
      seed: of the random choice.

    Returns:
      The new parts, int8 [n].
    """
    rng = np.random.default_rng([seed, _CARVE])
    rows = np.flatnonzero(part == TRAIN)
    events = log.events[rows]
    _, first, pair, sizes = np.unique(
        log.pair_keys[rows], return_index=True, return_inverse=True, return_counts=True
    )
    owner = log.users[rows][first]  # pair -> user
    left = np.bincount(log.users[rows], minlength=int(log.users.max(initial=0)) + 1)
    fixed = np.zeros(len(sizes), bool)
    for code in range(log.num_objectives):
        fixed[pair[events == code][:1]] = True
    taken = np.zeros(len(sizes), bool)
    part = part.copy()
    for code in objectives:
        mine = np.unique(pair[events == code])
        limit = min(most_users, int(share * len(mine)))
        cost = np.where(taken[mine], 0, sizes[mine])
        mine = rng.permutation(mine[(left[owner[mine]] > cost) & ~fixed[mine]])
        _, one = np.unique(owner[mine], return_index=True)  # one pair per user
        chosen = rng.permutation(mine[one])[:limit]
        new = chosen[~taken[chosen]]
        left[owner[new]] -= sizes[new]
        taken[new] = True
        target = np.zeros(len(sizes), bool)
        target[chosen] = True
        part[rows[target[pair] & (events == code)]] = VALID
    hidden = rows[taken[pair]]
    part[hidden[part[hidden] == TRAIN]] = HELD
    return part
