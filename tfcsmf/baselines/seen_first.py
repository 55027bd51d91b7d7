"""Items the user already viewed or carted first, then popularity.

A rule without learning that is hard to beat where people come back to items they
met before; print it beside every result of the standard protocol.
"""

from __future__ import annotations

import numpy as np

from tfcsmf.baselines.popularity import FixedOrder, PopularityRanker
from tfcsmf.data.lists import distinct_sorted
from tfcsmf.data.prepared import Csr, EvaluationSet, PreparedLog
from tfcsmf.evaluation.lists import (
    contains,
    from_sorted_rows,
    row_numbers,
    take_ranges,
    take_rows,
)


class SeenFirstRanker:
    """Ranks what the user met at a level below the objective before the rest.

    Items come in this order: those met at more of the levels below the objective
    first (for buys: viewed and carted, then one of both); where as many, those met
    at the lower level (viewed, then carted); then by popularity of the objective;
    then all other items by popularity. In a funnel without gaps, where whatever is
    carted was viewed, this is the order of the highest level reached. Where the
    log has gaps it is a choice: on the Taobao log it is the stronger rule, and comes
    within 1 % of the reference figure, while carted before viewed falls 13 % short.
    For the first objective, and wherever all met items are masked, it is
    `PopularityRanker`.

    Args:
      prepared: the log. What a query's user did is read from `test_histories` up to
        the query's `history_end`; for an objective without a history, from `known`.
    """

    def __init__(self, prepared: PreparedLog):
        self._prepared = prepared
        self._popularity = PopularityRanker(prepared)

    def rank(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        k: int,
    ) -> np.ndarray:
        """Ranks the catalogue; see `tfcsmf.evaluation.Ranker.rank`."""
        rest = self._popularity.rank(objective, evaluation_set, rows, exclude, k)
        order = self._popularity.orders[objective]
        first = self._met_before(objective, evaluation_set, rows, exclude, order)
        lengths = np.diff(first.offsets)[:, None]  # [n, 1]
        if not lengths.any():
            return rest
        rest = order.rank(_union(exclude, first), k)
        column = np.arange(k)[None, :]
        from_first = np.minimum(
            first.offsets[:-1, None] + column, first.offsets[-1] - 1
        )
        from_rest = np.take_along_axis(rest, np.maximum(column - lengths, 0), axis=1)
        return np.where(column < lengths, first.items[from_first], from_rest)

    def _met_before(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        order: FixedOrder,
    ) -> Csr:
        """Returns the items that come first, per query and in their order."""
        below = self._prepared.objectives.index(objective)
        events = self._prepared.objectives[:below]
        parts = [
            met_items(self._prepared, event, evaluation_set, rows) for event in events
        ]
        row = np.concatenate([[], *map(row_numbers, parts)]).astype(np.int64)
        item = np.concatenate([[], *(part.items for part in parts)]).astype(np.int64)
        level = np.repeat(np.arange(below), [len(part.items) for part in parts])
        allowed = ~contains(exclude, row, item)
        row, item, level = row[allowed], item[allowed], level[allowed]
        # One entry per (row, item): the sum of the weights of its distinct levels.
        size = len(order.order)
        triples = distinct_sorted((row * size + item) * max(below, 1) + level)
        pairs, levels = np.divmod(triples, max(below, 1))
        pairs, entry = np.unique(pairs, return_inverse=True)
        weight = np.bincount(entry, _level_weights(below)[levels], len(pairs))
        row, item = np.divmod(pairs, max(size, 1))
        sorting = np.lexsort((order.places[item], -weight, row))
        return from_sorted_rows(row[sorting], item[sorting], len(rows))


def met_items(
    prepared: PreparedLog, event: str, queries: EvaluationSet, rows: np.ndarray
) -> Csr:
    """Returns what the users of some queries did before, with one event.

    Args:
      prepared: its `test_histories` are read up to the queries' `history_end`; for
        an event without a history, `known`.
      event: one of the log's objectives.
      queries: an evaluation set.
      rows: int [n], which of its queries.
    """
    users = queries.users[rows]
    lists = prepared.test_histories.lists.get(event)
    if lists is None or event not in prepared.history_events:
        return take_rows(prepared.known[event], users)
    ends = queries.history_end[rows, prepared.history_events.index(event)]
    return take_ranges(lists.items, lists.offsets[users], ends)


def _level_weights(below: int) -> np.ndarray:
    """Returns weights whose sums order items by number of levels, then the lowest.

    Example:
      >>> _level_weights(2).tolist()
      [6.0, 5.0]
    """
    return 2.0**below + 2.0 ** np.arange(below - 1, -1, -1)


def _union(a: Csr, b: Csr) -> Csr:
    """Returns the rows of both, joined."""
    rows = np.concatenate([row_numbers(a), row_numbers(b)])
    sorting = np.argsort(rows, kind="stable")
    items = np.concatenate([a.items, b.items])[sorting]
    return from_sorted_rows(rows[sorting], items, len(a.offsets) - 1)
