"""What a stage gives back: pruning criteria behind one small interface.

A criterion sees the importance of the entries that take part (those the current
stage trained) and says which of them are freed for later stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Criterion(Protocol):
    """Chooses the entries to free."""

    def freed(self, importance: np.ndarray, share: float) -> np.ndarray:
        """Returns which entries are freed.

        Args:
          importance: float [n] >= 0, one per entry (or unit) that takes part.
          share: how much to free, 0 <= share < 1, in the criterion's own unit.

        Returns:
          bool [n].
        """
        ...

    def freed_by_row(
        self, importance: np.ndarray, takes_part: np.ndarray, share: float
    ) -> np.ndarray:
        """Applies the criterion to every row of a matrix by itself.

        Args:
          importance: float [rows, n] >= 0.
          takes_part: bool [rows, n]; other entries are never freed.
          share: as in `freed`.

        Returns:
          bool [rows, n].
        """
        ...


@dataclass(frozen=True)
class CumulativePercentile:
    """CPP: frees the smallest entries that hold `share` of the information mass.

    Entries are sorted by importance, ascending and stable; entry j is freed iff
    its cumulative sum c_j <= share * c_n. The share is one of *mass*: for
    Gaussian weights .1/.2/.3/.5 of the mass are 35/50/60/76 % of the entries.
    A share of 0 frees nothing; a layer of zeros holds no information and is freed
    whole by any other share.

    Example:
      >>> CumulativePercentile().freed(np.array([3.0, 1.0, 2.0, 4.0]), 0.3).tolist()
      [False, True, True, False]

    References:
      CSMF, arXiv 2504.12920, cumulative percentile-based pruning; ascending order
      is our reading.
    """

    def freed(self, importance: np.ndarray, share: float) -> np.ndarray:
        """See `Criterion.freed`; `share` is tau."""
        if share == 0.0 or importance.size == 0:
            return np.zeros(importance.shape, bool)
        ordered = np.sort(importance)
        cumulative = np.cumsum(ordered, dtype=np.float64)
        count = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
        return _smallest(importance, ordered, count)

    def freed_by_row(
        self, importance: np.ndarray, takes_part: np.ndarray, share: float
    ) -> np.ndarray:
        """See `Criterion.freed_by_row`."""
        if share == 0.0:
            return np.zeros(importance.shape, bool)
        # Entries that take no part have no mass: they come first and change nothing.
        mass = np.where(takes_part, importance, 0.0)
        order = np.argsort(mass, axis=1, kind="stable")
        cumulative = np.cumsum(
            np.take_along_axis(mass, order, axis=1), axis=1, dtype=np.float64
        )
        within = cumulative <= share * cumulative[:, -1:]
        freed = np.empty_like(within)
        np.put_along_axis(freed, order, within, axis=1)
        return freed & takes_part


@dataclass(frozen=True)
class FixedShare:
    """Frees the given share of *entries*, smallest first (PackNet by magnitude).

    With squared gradients as importance it is the Fisher criterion (FISH mask).

    Example:
      >>> FixedShare().freed(np.array([3.0, 1.0, 2.0, 4.0]), 0.5).tolist()
      [False, True, True, False]

    References:
      Mallya and Lazebnik, PackNet, CVPR '18; Sung et al., FISH mask, NeurIPS '21.
    """

    def freed(self, importance: np.ndarray, share: float) -> np.ndarray:
        """See `Criterion.freed`."""
        count = _count(share, importance.size)
        return _smallest(importance, np.sort(importance), count)

    def freed_by_row(
        self, importance: np.ndarray, takes_part: np.ndarray, share: float
    ) -> np.ndarray:
        """See `Criterion.freed_by_row`."""
        ranked = np.where(takes_part, importance, np.inf)
        order = np.argsort(ranked, axis=1, kind="stable")
        counts = _count(share, takes_part.sum(axis=1, keepdims=True))
        freed = np.empty(importance.shape, bool)
        first = np.arange(importance.shape[1]) < counts
        np.put_along_axis(freed, order, first, axis=1)
        return freed


@dataclass(frozen=True)
class RandomShare:
    """Frees a random share of entries, the control of every ablation.

    Args:
      generator: source of randomness.
    """

    generator: np.random.Generator

    def freed(self, importance: np.ndarray, share: float) -> np.ndarray:
        """See `Criterion.freed`."""
        count = _count(share, importance.size)
        freed = np.zeros(importance.size, bool)
        freed[self.generator.permutation(importance.size)[:count]] = True
        return freed

    def freed_by_row(
        self, importance: np.ndarray, takes_part: np.ndarray, share: float
    ) -> np.ndarray:
        """See `Criterion.freed_by_row`."""
        drawn = self.generator.random(importance.shape)
        return FixedShare().freed_by_row(drawn, takes_part, share)


def _count(share: float, size: Any) -> Any:
    """Rounds down; 0.29 of 100 is 29, though the product is 28.999999999999996."""
    return np.floor(np.round(share * size, 6)).astype(np.int64)


def _smallest(importance: np.ndarray, ordered: np.ndarray, count: int) -> np.ndarray:
    """Marks the `count` smallest entries; among equals the first ones.

    Needs only a sort of values, not the far slower stable argsort.
    """
    if count == 0:
        return np.zeros(importance.shape, bool)
    limit = ordered[count - 1]
    chosen = importance < limit
    equal = np.flatnonzero(importance == limit)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def make_criterion(name: str, seed: int) -> Criterion:
    """Returns the criterion of a configuration (`cpp`, `magnitude`, ...)."""
    if name == "cpp":
        return CumulativePercentile()
    if name == "random":
        return RandomShare(np.random.Generator(np.random.PCG64(seed)))
    return FixedShare()
