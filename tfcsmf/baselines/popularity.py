"""Popularity: the same ranking for everyone, less what each query excludes."""

from __future__ import annotations

import numpy as np

from tfcsmf.data.lists import distinct_sorted
from tfcsmf.data.prepared import Csr, EvaluationSet, PreparedLog
from tfcsmf.errors import ConfigError, nearest
from tfcsmf.evaluation.lists import row_numbers

ABSENT = -1  # as in `tfcsmf.evaluation.topk`


class FixedOrder:
    """One order of the catalogue that every query shares.

    Args:
      counts: [C], larger is earlier; equal counts are ordered by position.

    Attributes:
      order: int64 [C], catalogue positions, best first.
      places: int64 [C], the place of each position in that order.
    """

    def __init__(self, counts: np.ndarray):
        self.order = np.argsort(-np.asarray(counts), kind="stable")
        self.places = np.empty(len(self.order), np.int64)
        self.places[self.order] = np.arange(len(self.order))

    def rank(self, exclude: Csr, k: int) -> np.ndarray:
        """Returns the first k allowed positions per query, int32 [n, k].

        The catalogue is not walked: if e_0 < e_1 < ... are a query's excluded
        places, e_m - m allowed ones come before e_m, so the j-th allowed place is
        j + (number of m with e_m - m <= j).

        Args:
          exclude: n lists of positions.
          k: length of the ranking, padded with -1 where the catalogue runs out.

        Example:
          >>> exclude = Csr(np.array([0, 0, 2]), np.array([2, 1]))
          >>> FixedOrder(np.array([1, 5, 9, 2])).rank(exclude, 3).tolist()
          [[2, 1, 3], [3, 0, -1]]
        """
        size, queries = len(self.order), len(exclude.offsets) - 1
        keys = distinct_sorted(row_numbers(exclude) * size + self.places[exclude.items])
        rows, places = keys // max(size, 1), keys % max(size, 1)
        starts = np.searchsorted(rows, np.arange(queries))  # [n]
        allowed_before = places - (np.arange(len(keys)) - starts[rows])
        # One sorted array for all queries; the stride keeps them apart.
        keys = rows * (size + 1) + allowed_before
        wanted = np.minimum(np.arange(k), size)  # [k]
        stride = np.arange(queries)[:, None] * (size + 1)
        skipped = np.searchsorted(keys, stride + wanted, "right") - starts[:, None]
        place = np.arange(k) + skipped  # [n, k]
        padded = np.append(self.order, ABSENT)
        return padded[np.minimum(place, size)].astype(np.int32)


class PopularityRanker:
    """Ranks by the number of distinct users with the event in training.

    Args:
      prepared: the log; validation pairs count as training, as they do for the
        histories that test queries are given.

    Attributes:
      orders: one fixed order per objective.
    """

    def __init__(self, prepared: PreparedLog):
        self.orders = {
            objective: FixedOrder(popularity(prepared, objective))
            for objective in prepared.objectives
        }

    def rank(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        k: int,
    ) -> np.ndarray:
        """Ranks the catalogue; see `tfcsmf.evaluation.Ranker.rank`."""
        if objective not in self.orders:
            raise ConfigError(
                f"An objective should be one of {list(self.orders)}. "
                f"Received: {objective!r}.{nearest(objective, self.orders)}"
            )
        return self.orders[objective].rank(exclude, k)


def popularity(prepared: PreparedLog, objective: str) -> np.ndarray:
    """Returns the number of distinct training users per position, int64 [C]."""
    if prepared.whole is not None:
        return prepared.whole.popularity[objective]
    size = prepared.items.size
    # Histories hold validation events too; `known` serves objectives without one.
    lists = prepared.test_histories.lists.get(objective, prepared.known[objective])
    pairs = distinct_sorted(row_numbers(lists) * size + lists.items)
    return np.bincount(pairs % max(size, 1), minlength=size)
