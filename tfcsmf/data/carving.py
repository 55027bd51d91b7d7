"""Takes validation pairs out of the training events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfcsmf.data.lists import distinct_sorted
from tfcsmf.data.splits import HELD, TEST, TRAIN, VALID, CodedLog, draw

_PAIR, _USER = 1, 2  # distinguish the uses of one seed, see `splits`


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
    one training pair. Where test holds events out one by one (`held_out_alone`),
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
    pairs = TrainingPairs(log, part)
    kept = {code: key for code, (_, key) in pairs.first().items()}
    taken: dict[int, np.ndarray] = {}
    for code in sorted(objectives):
        alone = held_out_alone([count_test_pairs(log, pairs.mark(part, taken), code)])
        found = pairs.candidates(code, alone, kept, taken, most_users, seed)
        limit = min(most_users, int(share * pairs.count(code)))
        chosen = found.keys[:limit]
        taken[code] = chosen[~np.isin(chosen, list(kept.values()))]
    return pairs.hide(pairs.mark(part, taken), taken)


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be taken, at most one per user, the first to be taken first.

    Attributes:
      keys: int64 [n], pair keys.
      last: bool [n], those that come after all others.
      drawn: float64 [n], ascending among equal `last`.
      users: int [n], user codes; they decide between equal `drawn`.
    """

    keys: np.ndarray
    last: np.ndarray
    drawn: np.ndarray
    users: np.ndarray


class TrainingPairs:
    """The distinct (user, item) pairs of the objectives' training events.

    Args:
      log: the events, all of them or those of some users.
      part: as `splits.assign` returned it.
    """

    def __init__(self, log: CodedLog, part: np.ndarray) -> None:
        self._log = log
        self._rows = np.flatnonzero((part == TRAIN) & log.is_objective)
        self._events = log.events[self._rows]
        self._keys, first, self._pair = np.unique(
            log.pair_keys[self._rows], return_index=True, return_inverse=True
        )
        self._owner = log.users[self._rows][first]  # pair -> user

    def count(self, code: int) -> int:
        """Returns the number of distinct pairs of an objective."""
        return len(distinct_sorted(self._pair[self._events == code]))

    def first(self) -> dict[int, tuple[int, int]]:
        """Returns the row and the key of the first pair of every objective."""
        found = {}
        for code in np.unique(self._events).tolist():
            own = int(np.argmax(self._events == code))
            found[code] = (int(self._rows[own]), int(self._keys[self._pair[own]]))
        return found

    def candidates(
        self,
        code: int,
        alone: bool,
        kept: Mapping[int, int],
        taken: Mapping[int, np.ndarray],
        most: int,
        seed: int,
    ) -> Candidates:
        """Returns what may be taken for an objective.

        Args:
          code: of the objective.
          alone: see `held_out_alone`.
          kept: pair of every objective that stays training.
          taken: pairs taken for the objectives before.
          most: number of candidates that are returned.
          seed: of the random choice.
        """
        pair, events, owner = self._pair, self._events, self._owner
        own = np.flatnonzero(events == code)
        mine, one = np.unique(pair[own], return_index=True)
        # What users would be left with, of this objective and those before it.
        free = ~np.isin(self._keys, _all(taken))
        upto = events <= code
        sizes = np.bincount(pair[upto & free[pair]], minlength=len(self._keys))
        left = np.bincount(owner, sizes, minlength=int(owner.max(initial=0)) + 1)
        fixed = [key for other, key in kept.items() if other <= code]
        legal = (left[owner[mine]] > sizes[mine]) & ~np.isin(self._keys[mine], fixed)
        mine, source = mine[legal], own[one[legal]]
        users, items, names = self._log.row_keys(self._rows[source])
        last = np.zeros(len(mine), bool)
        if alone:
            last = np.isin(mine, pair[events < code])
        by_pair = draw(seed, _PAIR, names, users, items)
        order = np.lexsort((by_pair, last, owner[mine]))
        best = np.unique(owner[mine[order]], return_index=True)[1]
        best = order[best]  # one pair per user
        by_user = draw(seed, _USER, names[best], users[best])
        first = np.lexsort((by_user, last[best]))[:most]
        best, by_user = best[first], by_user[first]
        chosen = mine[best]
        return Candidates(self._keys[chosen], last[best], by_user, owner[chosen])

    def mark(self, part: np.ndarray, taken: Mapping[int, np.ndarray]) -> np.ndarray:
        """Makes the events of taken pairs validation targets of their objectives."""
        part = part.copy()
        for code, keys in taken.items():
            target = np.isin(self._keys, keys)[self._pair] & (self._events == code)
            part[self._rows[target]] = VALID
        return part

    def hide(self, part: np.ndarray, taken: Mapping[int, np.ndarray]) -> np.ndarray:
        """Hides whatever else happened to taken pairs."""
        hidden = np.isin(self._log.pair_keys, _all(taken))
        return np.where(hidden & (part == TRAIN), HELD, part).astype(np.int8)


def _all(taken: Mapping[int, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *taken.values()])


def count_test_pairs(log: CodedLog, part: np.ndarray, code: int) -> tuple[int, int]:
    """Counts an objective's test pairs without a training event.

    Returns:
      Those of them that have a test event of an objective before, and all.
    """
    keys, before = log.pair_keys, log.events <= code
    pairs = distinct_sorted(keys[(part == TEST) & (log.events == code)])
    pairs = pairs[~np.isin(pairs, keys[(part == TRAIN) & before])]
    earlier = np.isin(pairs, keys[(part == TEST) & (log.events < code)])
    return int(earlier.sum()), len(pairs)


def held_out_alone(counts: Iterable[tuple[int, int]]) -> bool:
    """Tells how test was made: event by event, or with all of a pair's events.

    Of the objective's test pairs without a training event, most have no test event
    of an objective before. A file that holds out one row per user and event is
    like that; a log that is split by time mostly is not.

    Args:
      counts: what `count_test_pairs` says of logs that share no user.
    """
    earlier, pairs = np.sum([(0, 0), *counts], axis=0)
    return bool(pairs) and float(earlier / pairs) < 0.5
