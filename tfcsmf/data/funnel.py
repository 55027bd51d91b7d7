"""The funnel read upwards: who bought an item has also viewed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfcsmf.data.lists import distinct_sorted, union_lists
from tfcsmf.data.prepared import Csr, Examples, Pairs, PreparedLog
from tfcsmf.evaluation.lists import from_lengths


def with_later_events(log: PreparedLog) -> PreparedLog:
    """Lets the first objective's examples speak for the later ones too.

    The first stage learns most of every item vector, and later stages cannot change
    it. So pairs with an event of a later objective are positives of the first one,
    if they are not yet. In a cascade a later event
    implies the earlier ones, but logs do not always hold them: they may be cut, or
    have one event per pair. (Our reading of CSMF, arXiv 2504.12920, whose levels are
    nested; measured in docs/results.md.)

    Args:
      log: the prepared log.

    Returns:
      The log with other `train` and `known` of the first objective. Validation, test,
      histories and the counts in the summary are not changed.
    """
    first, *later = log.objectives
    if not later:
        return log
    joined, known = joined_with_later(
        [log.train[name] for name in log.objectives],
        [log.known[name] for name in log.objectives],
        log.items.size,
    )
    return replace(
        log, train=log.train | {first: joined}, known=log.known | {first: known}
    )


@dataclass(frozen=True)
class Lessons:
    """A log whose first objective is trained with the later ones beside it.

    Attributes:
      log: the first objective has the examples of all, its own first; its `known` has
        one list per (objective, user), at row `objective * users + user`.
      labels: int32 [examples], the number of each one's objective.
    """

    log: PreparedLog
    labels: np.ndarray


def joint_lessons(log: PreparedLog, weights: Sequence[float]) -> Lessons:
    """Lets the first objective's rows be trained beside those of the later ones.

    Args:
      log: the prepared log.
      weights: of a pair of each objective; their mean over all examples becomes 1.
    """
    parts = [log.train[name] for name in log.objectives]
    sizes = [len(part.pairs) for part in parts]
    repeated = np.repeat(np.asarray(weights, np.float64), sizes)
    examples = replace(
        concatenated(parts), weights=(repeated / repeated.mean()).astype(np.float32)
    )
    known = stacked([log.known[name] for name in log.objectives])
    first = log.objectives[0]
    return Lessons(
        replace(
            log, train=log.train | {first: examples}, known=log.known | {first: known}
        ),
        np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
    )


def joined_with_later(
    train: Sequence[Examples], known: Sequence[Csr], num_items: int
) -> tuple[Examples, Csr]:
    """Returns the first objective's examples with pairs of the later ones.

    What is so joined already stays as it is.

    Args:
      train: examples by objective.
      known: positives of every user, by objective.
      num_items: catalogue size.

    Returns:
      The examples, by user, then time, and the positives of every user.
    """
    examples = concatenated(train)
    own = len(train[0].pairs)
    keys = examples.pairs.users.astype(np.int64) * num_items + examples.pairs.items
    rows = np.concatenate([np.arange(own), _added(keys, own)])
    pairs = examples.pairs
    rows = rows[np.lexsort((pairs.times[rows], pairs.users[rows]))]
    joined = Examples(
        Pairs(pairs.users[rows], pairs.items[rows], pairs.times[rows]),
        examples.history_end[rows],
    )
    return joined, union_lists(known, num_items)


def concatenated(parts: Sequence[Examples]) -> Examples:
    """Returns all examples, without weights."""
    return Examples(
        Pairs(
            np.concatenate([part.pairs.users for part in parts]),
            np.concatenate([part.pairs.items for part in parts]),
            np.concatenate([part.pairs.times for part in parts]),
        ),
        np.concatenate([part.history_end for part in parts]),
    )


def stacked(lists: Sequence[Csr]) -> Csr:
    """Returns the rows of the first, then those of the second, and so on."""
    return from_lengths(
        np.concatenate([np.diff(part.offsets) for part in lists]),
        np.concatenate([part.items for part in lists]),
    )


def _added(keys: np.ndarray, own: int) -> np.ndarray:
    """Numbers after the first `own`: one, the first, of each key not among those."""
    later = keys[own:]
    order = np.argsort(later, kind="stable")
    ordered = later[order]
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    first &= ~_within(ordered, distinct_sorted(keys[:own]))
    return own + np.sort(order[first])


def _within(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Returns which keys are among ascending ones, bool."""
    if not len(ascending):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return ascending[place] == keys
