"""What a stage gives back: pruning criteria behind one small interface.

A criterion sees the importance of the entries that take part (those the current
stage trained) and says which of them are freed for later stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
        count = int(
            np.searchsorted(cumulative, share * cumulative[-1], side="right")
        )
        return _smallest(importance, ordered, count)


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
        count = int(np.floor(share * importance.size))
        return _smallest(importance, np.sort(importance), count)


@dataclass(frozen=True)
class RandomShare:
    """Frees a random share of entries, the control of every ablation.

    Args:
      generator: source of randomness.
    """

    generator: np.random.Generator

    def freed(self, importance: np.ndarray, share: float) -> np.ndarray:
        """See `Criterion.freed`."""
        count = int(np.floor(share * importance.size))
        freed = np.zeros(importance.size, bool)
        freed[self.generator.permutation(importance.size)[:count]] = True
        return freed


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
