"""Proof that frozen objectives do not move: their vectors, before and after."""

from __future__ import annotations

import numpy as np

from tfcsmf.cascade.encoding import Encoder

_QUERIES, _CANDIDATES = 512, 4096  # compared at most


def _spread(size: int, most: int) -> np.ndarray:
    """Positions from the most frequent to the rarest and the untrained ones."""
    return np.unique(np.linspace(0, size - 1, most).astype(np.int32))


class FrozenScores:
    """Remembers each stage's vectors when it is frozen, to compare at the end.

    Args:
      encoder: gives the vectors of the current parameters.

    Attributes:
      arrays: remembered vectors, part of every checkpoint.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.arrays: dict[str, np.ndarray] = {}

    def remember(self, stage: int) -> None:
        """Keeps the vectors of a stage that has just been frozen."""
        queries, candidates = self._vectors(stage)
        self.arrays[f"{stage}/queries"] = queries
        self.arrays[f"{stage}/candidates"] = candidates

    def max_abs_change(self) -> float:
        """Returns the largest change of any remembered entry; 0.0 by contract."""
        changes = [0.0]
        for stage in range(self.num_stages):
            queries, candidates = self._vectors(stage)
            for now, name in ((queries, "queries"), (candidates, "candidates")):
                before = self.arrays[f"{stage}/{name}"]
                changes.append(float(np.max(np.abs(now - before), initial=0.0)))
        return max(changes)

    @property
    def num_stages(self) -> int:
        """Stages remembered."""
        return sum(name.endswith("/queries") for name in self.arrays)

    def _vectors(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        log = self._encoder.log
        here = log.users_here
        users = here[_spread(len(here), _QUERIES)]
        ends = [
            log.train_histories.lists[event].offsets[users + 1]
            for event in log.history_events
        ]
        ends_array = (
            np.stack(ends, axis=1) if ends else np.zeros((len(users), 0), np.int64)
        )
        queries = self._encoder.query_vectors(
            users, ends_array, log.train_histories, stage
        )
        positions = _spread(log.items.size, _CANDIDATES)
        return queries, self._encoder.candidates(stage + 1, positions)
