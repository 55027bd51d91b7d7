"""Divides events into training, validation and test.

All functions take events as parallel arrays of small integers (`CodedLog`), so
that logs of many million rows are divided without Python loops.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfcsmf.errors import DataError

TRAIN = 0
VALID = 1  # a validation target
HELD = 2  # no target, but hidden until test time
TEST = 3  # a test target
DROPPED = 4  # hidden throughout

SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
_RANDOM = 4  # distinguishes this use of the seed from those in `carving`


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
      keys: a number that stays the same in other logs (`stable_keys`) for every
        user, item and event code; None takes the codes themselves.
    """

    users: np.ndarray
    items: np.ndarray
    events: np.ndarray
    times: np.ndarray | None
    split: np.ndarray | None
    num_objectives: int
    keys: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def is_objective(self) -> np.ndarray:
        """Marks the events that are split; the others are only known or not."""
        return self.events < self.num_objectives

    @property
    def pair_keys(self) -> np.ndarray:
        """One number per (user, item) pair, int64 [n]."""
        width = int(self.items.max(initial=0)) + 1
        return self.users.astype(np.int64) * width + self.items

    def row_keys(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The user, item and event of some rows, as the numbers draws depend on."""
        codes = (self.users[rows], self.items[rows], self.events[rows])
        if self.keys is None:
            return codes
        user, item, event = (
            keys[code] for keys, code in zip(self.keys, codes, strict=True)
        )
        return user, item, event


def stable_keys(names: Iterable[str]) -> np.ndarray:
    """A number per name that depends on nothing else, int64 [n].

    Example:
      >>> stable_keys(["u1", "u2"])[1] == stable_keys(["u2"])[0]
      np.True_
    """
    encoded = (name.encode("utf-8") for name in names)
    return np.fromiter(map(zlib.crc32, encoded), np.int64)


def draw(*keys: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1) that are a pure function of integer keys.

    Unlike numbers drawn one after the other, they do not change with what else is
    in the log, so a log that has grown is divided as before.

    Args:
      *keys: integers or integer arrays of one shape.

    Example:
      >>> users = np.arange(100_000)
      >>> bool(abs(draw(0, 1, users).mean() - 0.5) < 0.005)
      True
    """
    return (mix(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(*keys: np.ndarray | int) -> np.ndarray:
    """Hashes integer keys to uint64: the same everywhere, and well spread.

    Args:
      *keys: integers or integer arrays of one shape; their order matters.
    """
    state = np.zeros(np.broadcast_shapes(*map(np.shape, keys)), np.uint64)
    for key in keys:  # a round of SplitMix64 each
        state = state + np.asarray(key, np.int64).astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def choose_method(wanted: str, log: CodedLog, time_column: str | None) -> str:
    """Resolves "auto" and checks that the log has what the method needs.

    Raises:
      DataError: if the split column or a usable time is missing.
    """
    times = log.times[log.is_objective] if log.times is not None else np.zeros(0)
    distinct = len(times) > 0 and times.min() < times.max()
    if wanted == "auto":
        if log.split is not None:
            return "file"
        if not distinct:
            return "random"
        # Ranks within a user do not compare between users.
        return "leave_last_out" if time_column == "position" else "time"
    if wanted == "file" and log.split is None:
        raise DataError(
            "data.split=file needs a split column. Map it with "
            "--set data.columns.split=<column>, or set data.split=auto."
        )
    if wanted == "time" and not distinct:
        raise DataError(
            "data.split=time needs events at two or more distinct times. Received: "
            f"{min(len(times), 1)}. Map the time with "
            "--set data.columns.time=[<column>], or set data.split=random."
        )
    return wanted


def assign(
    log: CodedLog,
    method: str,
    share: float,
    seed: int,
    boundaries: tuple[int | None, int | None] | None = None,
    spared: np.ndarray | None = None,
) -> np.ndarray:
    """Gives every event its part.

    Args:
      log: the events, all of them or those of some users.
      method: "file", "time", "leave_last_out" or "random" (`choose_method`).
      share: share of the objectives' events that becomes test, and validation
        again for "time".
      seed: of the random choice.
      boundaries: what `time_boundaries` says of the whole log; default, of this one.
      spared: pair keys that "random" leaves in training; default `spared_pairs` of
        this log.

    Returns:
      int8 [n], one of `TRAIN`, `VALID`, `HELD`, `TEST`, `DROPPED`. Events that are
      not objectives are never targets: hidden ones are `HELD` or `DROPPED`.
    """
    if method == "file":
        assert log.split is not None  # choose_method
        part = log.split.astype(np.int8)
    elif method == "time":
        assert log.times is not None  # choose_method
        if boundaries is None:
            boundaries = time_boundaries(log.times[log.is_objective], share)
        part = _by_time(log.times, *boundaries)
    elif method == "leave_last_out":
        part = _leave_last_out(log)
    else:
        part = _at_random(log, share, seed)
        if spared is None:
            chosen = spared_pairs(drawn_last(log, part, seed), log.num_objectives)
            spared = np.array([last.pair for last in chosen], np.int64)
        part[np.isin(log.pair_keys, spared)] = TRAIN
    other = ~log.is_objective
    part[other & (part == VALID)] = HELD
    part[other & (part == TEST)] = DROPPED
    return part


def count_parts(log: CodedLog, part: np.ndarray) -> np.ndarray:
    """Returns the events of every objective in every part, int64 [objectives, 5]."""
    parts = DROPPED + 1
    rows = np.flatnonzero(log.is_objective)
    keys = log.events[rows].astype(np.int64) * parts + part[rows]
    size = log.num_objectives * parts
    return np.bincount(keys, minlength=size).reshape(log.num_objectives, parts)


def time_boundaries(times: np.ndarray, share: float) -> tuple[int | None, int | None]:
    """Returns where validation and test begin, None for a part that stays empty.

    Each part takes as many of the last distinct times as hold at most `share` of
    the events, but at least one; the first distinct time always stays training.

    Example:
      >>> time_boundaries(np.array([1, 1, 1, 1, 2, 2, 3, 3]), 0.3)
      (2, 3)
    """
    return boundaries_of_counts(*np.unique(times, return_counts=True), share)


def boundaries_of_counts(
    distinct: np.ndarray, counts: np.ndarray, share: float
) -> tuple[int | None, int | None]:
    """As `time_boundaries`, from distinct ascending times and their events."""
    if share <= 0:
        return None, None
    after = np.cumsum(counts[::-1])[::-1]  # events at or after a distinct time
    boundaries: list[int | None] = []
    end = len(distinct)
    for _ in range(2):
        rest = after[end] if end < len(distinct) else 0
        fits = np.flatnonzero(after[:end] - rest <= share * counts.sum())
        begin = int(fits[0]) if fits.size else end - 1
        begin = max(begin, 1)
        if begin >= end:
            boundaries.append(None)
            continue
        boundaries.append(int(distinct[begin]))
        end = begin
    return boundaries[1], boundaries[0]


def _by_time(
    times: np.ndarray, valid_from: int | None, test_from: int | None
) -> np.ndarray:
    part = np.full(len(times), TRAIN, np.int8)
    if valid_from is not None:
        part[times >= valid_from] = VALID
    if test_from is not None:
        part[times >= test_from] = TEST
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
    """Every (user, item) pair is test with probability `share`, alone."""
    users, items, _ = log.row_keys(np.arange(len(log.users)))
    test = log.is_objective & (draw(seed, _RANDOM, users, items) < share)
    return np.where(test, TEST, TRAIN).astype(np.int8)


@dataclass(frozen=True)
class LastDrawn:
    """The pair of an objective that is the last to become test.

    Attributes:
      code: of the objective.
      is_test: all events of the objective are test.
      drawn: its number.
      pair: its key.
      events: number of its events by code.
    """

    code: int
    is_test: bool
    drawn: float
    pair: int
    events: Mapping[int, int]


def drawn_last(log: CodedLog, part: np.ndarray, seed: int) -> list[LastDrawn]:
    """Returns the pair drawn last of every objective in the log."""
    found = []
    for code in range(log.num_objectives):
        mine = np.flatnonzero(log.events == code)
        if not mine.size:
            continue
        users, items, _ = log.row_keys(mine)
        drawn = draw(seed, _RANDOM, users, items)
        row = mine[drawn.argmax()]
        pair = int(log.pair_keys[row])
        events = Counter(log.events[log.pair_keys == pair].tolist())
        is_test = bool((part[mine] == TEST).all())
        found.append(LastDrawn(code, is_test, float(drawn.max()), pair, events))
    return found


def spared_pairs(found: Sequence[LastDrawn], num_objectives: int) -> list[LastDrawn]:
    """Returns the pairs that stay training, so that every objective has one.

    Args:
      found: what `drawn_last` says, of all parts of the log.
      num_objectives: number of objectives.
    """
    spared: list[LastDrawn] = []
    for code in range(num_objectives):
        mine = [last for last in found if last.code == code]
        has_training = not all(last.is_test for last in mine)
        if mine and not has_training and not any(code in s.events for s in spared):
            spared.append(max(mine, key=lambda last: last.drawn))
    return spared
