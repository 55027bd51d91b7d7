"""Puts the arrays of several shards together, as those of one log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfcsmf.data.prepared import Csr, EvaluationSet, Examples, Histories, Pairs
from tfcsmf.data.rows import NO_TIME
from tfcsmf.data.sharded.block import Arrays, dtype_of


@dataclass(frozen=True)
class Merged:
    """Puts the arrays of shards together; users of others have empty lists.

    Attributes:
      num_users: of the whole log.
      objectives: in cascade order.
      history_events: columns of ends.
    """

    num_users: int
    objectives: tuple[str, ...]
    history_events: tuple[str, ...]

    def lists(self, blocks: list[Arrays], name: str) -> Csr:
        """Lists per user over all positions."""
        users, lengths, items = self._sorted(blocks, name, "items")
        sizes = np.zeros(self.num_users, np.int64)
        sizes[users] = lengths
        return Csr(np.append(0, np.cumsum(sizes)), items)

    def histories(self, blocks: list[Arrays], timed: bool) -> Histories:
        """Histories over all positions; `timed` ones have times."""
        lists, times = {}, {}
        for number, event in enumerate(self.history_events):
            name = f"history/{number}"
            lists[event] = self.lists(blocks, name)
            if timed:
                times[event] = self._sorted(blocks, name, "times")[2]
        return Histories(lists, None, times or None)

    def examples(
        self, blocks: list[Arrays], code: int, histories: Histories, timed: bool
    ) -> Examples:
        """Examples of an objective; `timed` says whether their times are known."""
        name = f"rows/{code}"
        users = joined([block["users"][block[f"{name}/users"]] for block in blocks])
        lengths = joined([block[f"{name}/lengths"] for block in blocks])
        ends = joined([block[f"{name}/ends"] for block in blocks])
        order = np.argsort(users, kind="stable")
        ends = self._absolute(ends, users, histories)[order]
        items = _gather(
            joined([block[f"{name}/items"] for block in blocks]), lengths, order
        )
        lengths, users = lengths[order], users[order]
        # One time per row, in their order.
        moments = np.arange(len(users)) if timed else np.full(len(users), NO_TIME)
        times = np.repeat(moments.astype(np.int64), lengths)
        pairs = Pairs(np.repeat(users, lengths), items, times)
        return Examples(pairs, np.repeat(ends, lengths, axis=0))

    def evaluation(
        self, blocks: list[Arrays], histories: Histories
    ) -> dict[str, EvaluationSet]:
        """Queries by objective."""
        return {
            name: self._queries(blocks, str(code), histories)
            for code, name in enumerate(self.objectives)
        }

    def _queries(
        self, blocks: list[Arrays], name: str, histories: Histories
    ) -> EvaluationSet:
        users = joined([block["users"][block[f"{name}/users"]] for block in blocks])
        order = np.argsort(users)
        ends = joined([block[f"{name}/ends"] for block in blocks])
        ends = self._absolute(ends, users, histories)

        def lists(key: str) -> Csr:
            lengths = joined([block[f"{name}/{key}/lengths"] for block in blocks])
            items = joined([block[f"{name}/{key}/items"] for block in blocks])
            offsets = np.append(0, np.cumsum(lengths[order])).astype(np.int64)
            return Csr(offsets, _gather(items, lengths, order))

        return EvaluationSet(
            users[order], lists("targets"), ends[order], lists("seen"), lists("met")
        )

    def _absolute(
        self, ends: np.ndarray, users: np.ndarray, histories: Histories
    ) -> np.ndarray:
        ends = ends.reshape(len(users), len(self.history_events)).astype(np.int64)
        starts = [lists.offsets[users] for lists in histories.lists.values()]
        return ends + np.stack(starts, axis=1) if starts else ends

    def _sorted(
        self, blocks: list[Arrays], name: str, key: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        users = joined([block["users"] for block in blocks])
        lengths = joined([block[f"{name}/lengths"] for block in blocks])
        none = np.zeros(0, dtype_of(f"/{key}"))
        values = np.concatenate([none, *(block[f"{name}/{key}"] for block in blocks)])
        order = np.argsort(users)
        return users[order], lengths[order], _gather(values, lengths, order)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Returns int32 arrays one after the other, of none an empty one."""
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _gather(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Puts lists that lie one after the other into another order."""
    starts = (np.cumsum(lengths) - lengths)[order]
    sizes = lengths[order]
    begins = np.cumsum(sizes) - sizes
    return values[np.repeat(starts - begins, sizes) + np.arange(sizes.sum())]
