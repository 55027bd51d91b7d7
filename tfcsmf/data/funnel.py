"""The funnel read upwards: who bought an item has also viewed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tfcsmf.data.lists import distinct_sorted, union_lists
from tfcsmf.data.prepared import Csr, Examples, Pairs, PreparedLog


def with_later_events(log: PreparedLog, weight: float) -> PreparedLog:
    """Lets the first objective's examples speak for the later ones too.

    The first stage learns most of every item vector, and later stages cannot change
    it. So pairs with an event of a later objective are positives of the first one,
    if they are not yet, and all such pairs weigh more. In a cascade a later event
    implies the earlier ones, but logs do not always hold them: they may be cut, or
    have one event per pair. (Our reading of CSMF, arXiv 2504.12920, whose levels are
    nested; measured in docs/results.md.)

    Args:
      log: the prepared log.
      weight: of pairs with a later event, next to 1 of the others; 0 leaves the log
        as it is, where they are negatives of the first objective unless they have an
        event of it.

    Returns:
      The log with other `train` and `known` of the first objective. Validation, test,
      histories and the counts in the summary are not changed.
    """
    first, *later = log.objectives
    if not weight or not later:
        return log
    joined, known = joined_with_later(
        [log.train[name] for name in log.objectives],
        [log.known[name] for name in log.objectives],
        log.items.size,
    )
    assert joined.weights is not None  # for the type checker
    weights = np.where(joined.weights, weight, 1.0)
    joined = replace(joined, weights=(weights / weights.mean()).astype(np.float32))
    return replace(
        log, train=log.train | {first: joined}, known=log.known | {first: known}
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
      The examples, by user, then time, whose weights are 1 where a later event of the
      pair is known and else 0, and the positives of every user.
    """
    examples = _joined(train)
    own = len(train[0].pairs)
    keys = examples.pairs.users.astype(np.int64) * num_items + examples.pairs.items
    rows = np.concatenate([np.arange(own), _added(keys, own)])
    pairs = examples.pairs
    rows = rows[np.lexsort((pairs.times[rows], pairs.users[rows]))]
    joined = Examples(
        Pairs(pairs.users[rows], pairs.items[rows], pairs.times[rows]),
        examples.history_end[rows],
        _within(keys[rows], distinct_sorted(keys[own:])).astype(np.float32),
    )
    return joined, union_lists(known, num_items)


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(
        Pairs(
            np.concatenate([part.pairs.users for part in parts]),
            np.concatenate([part.pairs.items for part in parts]),
            np.concatenate([part.pairs.times for part in parts]),
        ),
        np.concatenate([part.history_end for part in parts]),
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
