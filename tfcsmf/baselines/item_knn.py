"""Item-kNN: items that the same users chose as those of the query's history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tfcsmf.baselines.popularity import FixedOrder
from tfcsmf.baselines.seen_first import met_items
from tfcsmf.data.lists import distinct_lists
from tfcsmf.data.prepared import Csr, EvaluationSet, PreparedLog
from tfcsmf.errors import ConfigError, nearest
from tfcsmf.evaluation.lists import (
    from_lengths,
    from_sorted_rows,
    row_numbers,
    take_ranges,
    take_rows,
)
from tfcsmf.evaluation.topk import top_k_scores

_PAIRS = 5_000_000  # co-occurrences held at once: about 0.2 GB
_SCORES = 1 << 23  # scores held at once


class ItemKnnRanker:
    """Ranks by the summed cosine similarity to what the user did before.

    With `x_i[u]` the number of events that count (one, or all of the log's
    objectives) by which user u chose item i, and `y_j[u]` whether u chose j by the
    objective, s(i, j) is the cosine of x_i and y_j. The score of candidate j is
    `sum_i x_i[u] s(i, j)` over the items of the query's history, j itself included
    where it is not masked. Equal scores, and items without any, are ordered by the
    objective's popularity.

    Args:
      prepared: the log. Histories are read from `test_histories` up to the query's
        `history_end`; for an objective without a history, from `known`.
      all_events: all objectives' events count, or only those of the one that is
        ranked for.
      neighbours: candidates kept per item of a history. On Taobao 20 are as good as
        200 for single events, and better for all.

    References:
      Sarwar et al., Item-based collaborative filtering, WWW '01; Deshpande and
      Karypis, Item-based top-N recommendation algorithms, TOIS '04.
    """

    def __init__(
        self, prepared: PreparedLog, all_events: bool = False, neighbours: int = 20
    ):
        self._prepared = prepared
        size = prepared.items.size
        # By objective: the events that count.
        self._events: dict[str, Sequence[str]] = {
            name: prepared.objectives if all_events else (name,)
            for name in prepared.objectives
        }
        self._orders: dict[str, FixedOrder] = {}
        self._similar: dict[str, tuple[Csr, np.ndarray]] = {}
        for name, events in self._events.items():
            targets = _chosen(prepared, (name,))
            counts = np.bincount(targets.items, minlength=size)
            self._orders[name] = FixedOrder(counts)
            self._similar[name] = similar_items(
                _chosen(prepared, events), targets, size, neighbours
            )

    def rank(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        k: int,
    ) -> np.ndarray:
        """Ranks the catalogue; see `tfcsmf.evaluation.Ranker.rank`."""
        if objective not in self._events:
            raise ConfigError(
                f"An objective should be one of {list(self._events)}. "
                f"Received: {objective!r}.{nearest(objective, self._events)}"
            )
        order = self._orders[objective]
        size = len(order.order)
        history = self._history(objective, evaluation_set, rows)
        similar, cosines = self._similar[objective]
        numbers = np.arange(len(cosines))

        def score(part: np.ndarray) -> np.ndarray:
            mine = take_rows(history, part)
            starts, ends = similar.offsets[mine.items], similar.offsets[mine.items + 1]
            entries = take_ranges(numbers, starts, ends)
            query = np.repeat(row_numbers(mine), ends - starts)
            # In the order of popularity, so that ties go to the more popular.
            place = order.places[similar.items[entries.items]]
            sums = np.bincount(
                query * size + place, cosines[entries.items], len(part) * size
            )
            return sums.reshape(len(part), size).astype(np.float32)

        placed = Csr(exclude.offsets, order.places[exclude.items].astype(np.int32))
        batch = max(1, min(512, _SCORES // max(size, 1)))
        _, places = top_k_scores(score, len(rows), size, k, placed, batch)
        return np.append(order.order, -1)[places].astype(np.int32)

    def _history(self, objective: str, queries: EvaluationSet, rows: np.ndarray) -> Csr:
        parts = [
            met_items(self._prepared, event, queries, rows)
            for event in self._events[objective]
        ]
        return _joined(
            [
                distinct_lists(
                    row_numbers(part), part.items, len(rows), self._prepared.items.size
                )
                for part in parts
            ]
        )


def _chosen(prepared: PreparedLog, events: Sequence[str]) -> Csr:
    """Returns the items of every user, once per event the user chose them by."""
    size = prepared.items.size
    parts = [
        distinct_lists(row_numbers(part), part.items, len(part.offsets) - 1, size)
        for part in (
            prepared.test_histories.lists.get(event, prepared.known[event])
            for event in events
        )
    ]
    return _joined(parts)


def _joined(parts: Sequence[Csr]) -> Csr:
    """Returns the rows of all, one after the other."""
    rows = np.concatenate([row_numbers(part) for part in parts])
    items = np.concatenate([part.items for part in parts])
    order = np.argsort(rows, kind="stable")
    return from_sorted_rows(rows[order], items[order], len(parts[0].offsets) - 1)


def similar_items(
    users: Csr, targets: Csr, size: int, most: int
) -> tuple[Csr, np.ndarray]:
    """Returns the targets most similar to every item, and their cosines.

    Args:
      users: items per user; one listed n times has the weight n.
      targets: items per user, what is recommended.
      size: number of items.
      most: targets kept per item.

    Returns:
      Lists of targets, most similar first, and float64 cosines of their entries.

    Example:
      >>> users = Csr(np.array([0, 2, 3]), np.array([0, 1, 1]))
      >>> similar, cosines = similar_items(users, users, 2, 5)
      >>> similar.row(0).tolist(), cosines[:2].round(4).tolist()
      ([0, 1], [1.0, 0.7071])
    """
    norms, target_norms = _norms(users, size), _norms(targets, size)
    by_item = np.argsort(users.items, kind="stable")
    user, item = row_numbers(users)[by_item], users.items[by_item].astype(np.int64)
    parts = [np.zeros((0, 3))]
    for part in _blocks(item, np.diff(targets.offsets)[user]):
        others = take_rows(targets, user[part])
        keys, products = _counted(item[part][row_numbers(others)] * size + others.items)
        own, other = np.divmod(keys, size)
        cosines = products / (norms[own] * target_norms[other])
        order = np.lexsort((other, -cosines, own))
        place = np.arange(len(own)) - np.searchsorted(own, own)
        order = order[place < most]
        parts.append(np.stack([own[order], other[order], cosines[order]], axis=1))
    table = np.concatenate(parts)  # float64 holds positions exactly
    lengths = np.bincount(table[:, 0].astype(np.int64), minlength=size)
    return from_lengths(lengths, table[:, 1]), table[:, 2]


def _norms(users: Csr, size: int) -> np.ndarray:
    """Returns the lengths of the items' vectors over users; 1 for items without."""
    keys, weights = _counted(row_numbers(users) * size + users.items)
    return np.sqrt(np.maximum(np.bincount(keys % size, np.square(weights), size), 1.0))


def _counted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys, ascending, and how often each was there."""
    keys = np.sort(keys)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.diff(first, append=len(keys))


def _blocks(items: np.ndarray, work: np.ndarray) -> Iterator[slice]:
    """Cuts sorted items into ranges of bounded work, never inside an item."""
    number = np.cumsum(work) // _PAIRS
    first = np.flatnonzero(np.diff(items, prepend=-1))
    edges = first[np.flatnonzero(np.diff(number[first], prepend=-1))]
    for start, stop in zip(edges, [*edges[1:], len(items)], strict=True):
        yield slice(start, stop)
