"""How often a candidate is drawn as an in-batch negative: Q of the logQ correction."""

from __future__ import annotations

import numpy as np


def sampling_probability(items: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the share of each candidate among the training examples.

    In-batch negatives are other examples' positives, so this is their sampling
    distribution.

    Args:
      items: int [n], catalogue positions of the training examples.
      num_items: catalogue size.

    Returns:
      float32 [num_items], sums to 1; 0 for candidates without examples.

    Example:
      >>> sampling_probability(np.array([1, 1, 0, 1]), 3).tolist()
      [0.25, 0.75, 0.0]
    """
    counts = np.bincount(items, minlength=num_items).astype(np.float64)
    return (counts / max(counts.sum(), 1.0)).astype(np.float32)


def mixed_probability(
    parts: list[tuple[float, np.ndarray | None]], num_items: int
) -> np.ndarray:
    """Returns the probability of one draw from a pool with several sources.

    A pool of B in-batch and N uniform negatives is treated as one sample of size
    B + N: a candidate's expected count is the sum over the sources, whichever of
    them it came from. That has lower variance than a correction per source.

    Args:
      parts: (draws, on average, distribution [num_items] or `None` for uniform)
        per source.
      num_items: catalogue size.

    Returns:
      float32 [num_items]; at least the smallest positive normal float, so that
      its logarithm is finite.

    Example:
      >>> mixed_probability([(1, np.array([1.0, 0.0])), (1, None)], 2).tolist()
      [0.75, 0.25]

    References:
      Yang et al., Mixed negative sampling, WWW '20.
    """
    total = sum(draws for draws, _ in parts)
    mixed = np.zeros(num_items, np.float64)
    for draws, distribution in parts:
        uniform = 1.0 / num_items
        mixed += draws / total * (uniform if distribution is None else distribution)
    return np.maximum(mixed, np.finfo(np.float32).tiny).astype(np.float32)


class StreamingFrequency:
    """Estimates sampling probabilities of an unbounded stream of batches.

    Keeps, per hash bucket, the step an item was last met and a moving average of
    the gap between two meetings; its inverse is the probability of being in a
    batch.

    Args:
      buckets: hash buckets, >= 1; ids that share one are counted together.
      rate: weight of the newest gap, in (0, 1].

    Example:
      >>> stream = StreamingFrequency(buckets=100, rate=0.5)
      >>> for step in range(40):
      ...     _ = stream.update(np.array([7] if step % 2 else [3, 7]))
      >>> stream.probability(np.array([3, 7])).round(2).tolist()
      [0.5, 1.0]

    References:
      Yi et al., Sampling-bias-corrected neural modeling, RecSys '19, algorithm 2.
    """

    def __init__(self, buckets: int, rate: float = 0.01) -> None:
        if buckets < 1 or not 0.0 < rate <= 1.0:
            raise ValueError(
                "`buckets` should be at least 1 and `rate` in (0, 1]. "
                f"Received: {buckets} and {rate}."
            )
        self.rate = rate
        self.step = 0
        self._last = np.zeros(buckets, np.int64)
        self._gap = np.zeros(buckets, np.float64)

    def update(self, ids: np.ndarray) -> np.ndarray:
        """Counts one batch of integer ids and returns their probabilities."""
        self.step += 1
        slots = np.unique(self._slots(ids))
        gap = self.step - self._last[slots]
        known = self._gap[slots] > 0
        blended = (1 - self.rate) * self._gap[slots] + self.rate * gap
        self._gap[slots] = np.where(known, blended, gap)
        self._last[slots] = self.step
        return self.probability(ids)

    def probability(self, ids: np.ndarray) -> np.ndarray:
        """Returns the probability that a batch holds each id, 0 if never met."""
        gap = self._gap[self._slots(ids)]
        return np.divide(1.0, gap, out=np.zeros_like(gap), where=gap > 0)

    def _slots(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(ids, np.int64) % len(self._last)
