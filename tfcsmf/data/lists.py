"""Builds lists per row (`Csr`) and the pointers into histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfcsmf.data.prepared import Csr, EvaluationSet, Histories, Order
from tfcsmf.data.rows import MISSING, NUM_RESERVED


@dataclass(frozen=True)
class SortedLog:
    """Events sorted by user and, within a user, by time; all arrays [n].

    Attributes:
      users: int32 user positions.
      items: int32 catalogue positions.
      events: event codes.
      times: int64, or `NO_TIME` everywhere.
      ranks: int64 dense rank of the time among all times; None if unknown.
      part: parts as `tfcsmf.data.splits` names them.
      num_users: size of the user table.
      num_items: size of the catalogue.
      trained_items: number of leading catalogue positions that are trained.
    """

    users: np.ndarray
    items: np.ndarray
    events: np.ndarray
    times: np.ndarray
    ranks: np.ndarray | None
    part: np.ndarray
    num_users: int
    num_items: int
    trained_items: int

    def history(self, event: int, mask: np.ndarray) -> np.ndarray:
        """Indices of the masked events that make up one history, sorted."""
        trained = self.items < self.trained_items
        return np.flatnonzero(mask & trained & (self.events == event))


def offsets_of(rows: np.ndarray, size: int) -> np.ndarray:
    """Offsets of a `Csr` by the sorted rows of its entries, int64 [size + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))]).astype(
        np.int64
    )


def distinct_sorted(keys: np.ndarray) -> np.ndarray:
    """Returns the distinct values of integer keys, ascending.

    As `np.unique`, which hashes 64-bit integers since NumPy 2.3 and then takes a
    hundred times as long on millions of distinct ones.

    Example:
      >>> distinct_sorted(np.array([3, 1, 3])).tolist()
      [1, 3]
    """
    ordered = np.sort(keys, axis=None)
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def distinct_lists(rows: np.ndarray, items: np.ndarray, size: int, width: int) -> Csr:
    """Sorted distinct items per row.

    Args:
      rows: row of every entry [n], any order.
      items: item of every entry [n], below `width`.
      size: number of rows.
      width: number of possible items.

    Example:
      >>> rows, items = np.array([1, 1, 0, 1]), np.array([5, 2, 3, 5])
      >>> distinct_lists(rows, items, 2, 6).row(1).tolist()
      [2, 5]
    """
    keys = distinct_sorted(rows.astype(np.int64) * width + items)
    return Csr(offsets_of(keys // width, size), (keys % width).astype(np.int32))


def pair_keys(lists: Csr, width: int) -> np.ndarray:
    """Returns `row * width + item` of every entry of some lists, int64 [n].

    Example:
      >>> pair_keys(Csr(np.array([0, 1, 3]), np.array([4, 0, 2])), 5).tolist()
      [4, 5, 7]
    """
    rows = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    return rows * np.int64(width) + lists.items


def union_lists(parts: Sequence[Csr], width: int) -> Csr:
    """Sorted distinct items per row of several lists over the same rows.

    Args:
      parts: at least one.
      width: number of possible items.
    """
    size = len(parts[0].offsets) - 1
    rows = [np.repeat(np.arange(size), np.diff(part.offsets)) for part in parts]
    items = [part.items for part in parts]
    return distinct_lists(np.concatenate(rows), np.concatenate(items), size, width)


def build_histories(
    log: SortedLog,
    names: Sequence[str],
    codes: Sequence[int],
    mask: np.ndarray,
    with_times: bool = False,
) -> Histories:
    """Chronological lists of the masked events, trained items only."""
    lists, times = {}, {}
    for name, code in zip(names, codes, strict=True):
        rows = log.history(code, mask)
        lists[name] = Csr(offsets_of(log.users[rows], log.num_users), log.items[rows])
        if with_times and log.ranks is not None:
            times[name] = log.times[rows]
    return Histories(lists, _order(log, codes, mask), times or None)


def _order(log: SortedLog, codes: Sequence[int], mask: np.ndarray) -> Order:
    """How the histories interleave, and the gaps between their entries."""
    number = np.full(int(log.events.max(initial=0)) + 1, -1, np.int8)
    known = [code for code in codes if code < len(number)]
    number[known] = np.flatnonzero(np.isin(codes, known))
    trained = log.items < log.trained_items
    events = number[log.events]
    rows = np.flatnonzero(mask & trained & (events >= 0))
    return Order(events[rows], time_gaps(log.users[rows], log.times[rows]))


def time_gaps(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the row of the time since each user's entry before, int8 [n].

    The row of a gap g >= 0 is `NUM_RESERVED + floor(log2(g + 1))`, whatever the unit
    of time; that of a user's first entry is `MISSING`.

    Args:
      users: int [n], sorted.
      times: int64 [n], ascending within a user.

    Example:
      >>> time_gaps(np.array([0, 0, 0, 1]), np.array([5, 5, 8, 9])).tolist()
      [1, 3, 5, 1]
    """
    rows = np.full(len(users), MISSING, np.int8)
    gaps = np.diff(times).astype(np.float64)
    same = users[1:] == users[:-1]
    powers = np.floor(np.log2(np.maximum(gaps, 0) + 1)).astype(np.int8)
    rows[1:][same] = powers[same] + NUM_RESERVED
    return rows


def history_ends(
    log: SortedLog,
    codes: Sequence[int],
    mask: np.ndarray,
    users: np.ndarray,
    ranks: np.ndarray | None,
) -> np.ndarray:
    """Where each query's history ends: before its own time, if that is known.

    Args:
      log: the events.
      codes: history events.
      mask: which events are part of the histories [n].
      users: user positions of the queries [q].
      ranks: time ranks of the queries [q]; None takes everything.

    Returns:
      int64 [q, len(codes)], absolute ends (exclusive) in `Csr.items`.
    """
    ends = np.zeros((len(users), len(codes)), np.int64)
    for column, code in enumerate(codes):
        rows = log.history(code, mask)
        if ranks is None or log.ranks is None:
            offsets = offsets_of(log.users[rows], log.num_users)
            ends[:, column] = offsets[users.astype(np.int64) + 1]
            continue
        # Sorted, because the log is; entries of earlier users count as well,
        # which makes the ends absolute.
        width = int(log.ranks.max(initial=0)) + 1
        entries = log.users[rows].astype(np.int64) * width + log.ranks[rows]
        queries = users.astype(np.int64) * width + ranks
        ends[:, column] = np.searchsorted(entries, queries, side="left")
    return ends


def build_evaluation(
    log: SortedLog,
    objective: int,
    targets: np.ndarray,
    known: np.ndarray,
    history_codes: Sequence[int],
) -> EvaluationSet:
    """Collects held-out events into one query per user.

    A query happens at the earliest of its targets; what the user did from then
    on is neither in its histories nor masked.

    Args:
      log: the events.
      objective: event code.
      targets: indices of the held-out events, ascending.
      known: which events are known to the queries [n].
      history_codes: history events.
    """
    users, first = np.unique(log.users[targets], return_index=True)
    ranks = None if log.ranks is None else log.ranks[targets][first]
    query = np.full(log.num_users, -1, np.int64)
    query[users] = np.arange(len(users))
    before = known & (query[log.users] >= 0)
    if ranks is not None and log.ranks is not None:
        limit = np.zeros(log.num_users, np.int64)
        limit[users] = ranks
        before &= log.ranks < limit[log.users]

    def lists(rows: np.ndarray) -> Csr:
        return distinct_lists(
            query[log.users[rows]], log.items[rows], len(users), log.num_items
        )

    return EvaluationSet(
        users=users.astype(np.int32),
        targets=lists(targets),
        history_end=history_ends(log, history_codes, known, users, ranks),
        seen=lists(np.flatnonzero(before & (log.events == objective))),
        met=lists(np.flatnonzero(before)),
    )
