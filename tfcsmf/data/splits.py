"""Divides events into training, validation and test.

All functions take events as parallel arrays of small integers (`CodedLog`), so
that logs of many million rows are divided without Python loops.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tfcsmf.errors import DataError

TRAIN = 0
VALID = 1  # a validation target
HELD = 2  # no target, but hidden until test time
TEST = 3  # a test target
DROPPED = 4  # hidden throughout

SPLIT_CODES = {"train": TRAIN, "valid": VALID, "test": TEST}
_PAIR, _USER, _RANDOM = 1, 2, 4  # distinguish the uses of one seed


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
    """Every (user, item) pair is test with probability `share`, alone.

    Of every objective the pair drawn last stays training.
    """
    users, items, _ = log.row_keys(np.arange(len(log.users)))
    drawn = draw(seed, _RANDOM, users, items)
    test = log.is_objective & (drawn < share)
    for code in range(log.num_objectives):
        mine = np.flatnonzero(log.events == code)
        if test[mine].all() and mine.size:
            last = mine[np.argmax(drawn[mine])]
            test &= log.pair_keys != log.pair_keys[last]
    part = np.full(len(log.users), TRAIN, np.int8)
    part[test] = TEST
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
    training event of this objective or one before it, and an objective at least
    one training pair. Where test holds events out one by one (`_held_out_alone`),
    pairs without an event of an objective before are taken first: the others are
    easier to find, and the unseen protocol has few of them.

    Draws depend on the seed and the names of user, item and objective, and a
    choice on events of this objective and those before it alone. So objectives
    appended later leave the pairs of the earlier ones as they are, except that
    the one pair kept for a new objective is no validation pair.

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
    if not objectives:
        return part.copy()
    rows = np.flatnonzero((part == TRAIN) & log.is_objective)
    events = log.events[rows]
    _, first, pair = np.unique(
        log.pair_keys[rows], return_index=True, return_inverse=True
    )
    owner = log.users[rows][first]  # pair -> user
    users, items, names = log.row_keys(rows)
    kept = {
        code: pair[events == code][0]  # pairs that stay training
        for code in range(log.num_objectives)
        if (events == code).any()
    }
    taken = np.zeros(len(first), bool)
    part = part.copy()
    for code in sorted(objectives):
        own = np.flatnonzero(events == code)
        mine, one = np.unique(pair[own], return_index=True)
        if not mine.size:
            continue
        limit = min(most_users, int(share * len(mine)))
        # What users would be left with, of this objective and those before it.
        upto = events <= code
        sizes = np.bincount(pair[upto & ~taken[pair]], minlength=len(first))
        left = np.bincount(owner, sizes, minlength=int(owner.max()) + 1)
        fixed = [kept[other] for other in kept if other <= code]
        legal = (left[owner[mine]] > sizes[mine]) & ~np.isin(mine, fixed)
        mine, source = mine[legal], own[one[legal]]
        name = names[own[0]]
        last = np.zeros(len(mine), bool)
        if _held_out_alone(log, part, code):
            last = np.isin(mine, pair[events < code])
        by_pair = draw(seed, _PAIR, name, users[source], items[source])
        order = np.lexsort((by_pair, last, owner[mine]))
        mine, source, last = mine[order], source[order], last[order]
        best = np.unique(owner[mine], return_index=True)[1]  # one pair per user
        by_user = draw(seed, _USER, name, users[source[best]])
        chosen = mine[best[np.lexsort((by_user, last[best]))]][:limit]
        chosen = chosen[~np.isin(chosen, list(kept.values()))]
        taken[chosen] = True
        target = np.zeros(len(first), bool)
        target[chosen] = True
        part[rows[target[pair] & (events == code)]] = VALID
    hidden = np.isin(log.pair_keys, log.pair_keys[rows[first[taken]]])
    part[hidden & (part == TRAIN)] = HELD
    return part


def _held_out_alone(log: CodedLog, part: np.ndarray, code: int) -> bool:
    """Tells how test was made: event by event, or with all of a pair's events.

    Of the objective's test pairs without a training event, most have no test event
    of an objective before. A file that holds out one row per user and event is
    like that; a log that is split by time mostly is not.
    """
    keys, before = log.pair_keys, log.events <= code
    pairs = np.unique(keys[(part == TEST) & (log.events == code)])
    pairs = pairs[~np.isin(pairs, keys[(part == TRAIN) & before])]
    earlier = np.isin(pairs, keys[(part == TEST) & (log.events < code)])
    return bool(len(pairs)) and float(earlier.mean()) < 0.5
