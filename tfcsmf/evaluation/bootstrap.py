"""Percentile bootstrap of means over users."""

from __future__ import annotations

import numpy as np

from tfcsmf.errors import ConfigError

_CELLS = 4_000_000  # resampled users held at once: 32 MB


def bootstrap_means(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Returns the means of resampled users.

    Each sample draws n users with replacement; all columns share the draws, so
    differences between columns are paired.

    Args:
      values: float [n] or [n, m], one row per user, n >= 1.
      samples: number of resamples, >= 1.
      seed: of the draws; equal seeds and n give equal draws.

    Returns:
      float64 [samples] or [samples, m].

    Raises:
      ConfigError: without a user or a sample.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 1 or samples < 1:
        raise ConfigError(
            "The bootstrap needs at least one user and one sample. "
            f"Received: {n} users, {samples} samples."
        )
    generator = np.random.default_rng(seed)
    means = np.empty((samples, *values.shape[1:]))
    step = max(1, _CELLS // n)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        drawn = generator.integers(0, n, (count, n))
        drawn += np.arange(count)[:, None] * n
        # How often each user was drawn: one product then serves all columns.
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        means[start : start + count] = times.astype(np.float64) @ values / n
    return means


def mean_interval(
    values: np.ndarray, samples: int, seed: int, level: float = 0.95
) -> np.ndarray:
    """Returns the bootstrap interval of the mean over users.

    Args:
      values: float [n] or [n, m], one row per user.
      samples: number of resamples.
      seed: of the draws.
      level: coverage, in (0, 1).

    Returns:
      float64 [2] or [2, m]: lower and upper bound.

    Example:
      >>> low, high = mean_interval(np.array([0.0, 1.0] * 200), 500, seed=0)
      >>> bool(0.44 < low < 0.5 < high < 0.56)
      True
    """
    means = bootstrap_means(values, samples, seed)
    tail = (1.0 - level) / 2.0
    return np.quantile(means, [tail, 1.0 - tail], axis=0)


def paired_difference(
    a: np.ndarray, b: np.ndarray, samples: int, seed: int, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Compares two systems on the same users.

    Args:
      a: float [n], one value per user.
      b: float [n], the other system's values of the same users in the same order.
      samples: number of resamples.
      seed: of the draws.
      level: coverage, in (0, 1).

    Returns:
      Mean of `a - b`, and its interval; systems differ clearly where it excludes 0.

    Raises:
      ConfigError: if the systems were not measured on the same users.

    Example:
      >>> paired_difference(np.array([1.0, 0.5]), np.array([0.5, 0.0]), 100, seed=0)
      (0.5, (0.5, 0.5))
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ConfigError(
            "A paired comparison needs the same users on both sides. "
            f"Received: {a.shape} and {b.shape} values."
        )
    difference = a - b
    low, high = mean_interval(difference, samples, seed, level)
    return float(difference.mean()), (float(low), float(high))


def pooled_interval(
    sums: np.ndarray, counts: np.ndarray, samples: int, seed: int, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over all measurements of users, and its interval.

    A user measured several times, with several seeds of training, is one user: users
    are resampled with all their measurements. Treating these as independent would make
    the interval too narrow.

    Args:
      sums: float [n, m], the sum of each user's measurements.
      counts: [n], how many there are, >= 1.
      samples: number of resamples.
      seed: of the draws.
      level: coverage, in (0, 1).

    Returns:
      float64 [m], and float64 [2, m]: lower and upper bound.

    Example:
      >>> mean, (low, high) = pooled_interval(
      ...     np.array([[2.0], [1.0]]), np.array([2, 1]), 100, seed=0
      ... )
      >>> mean.tolist(), low.tolist(), high.tolist()
      ([1.0], [1.0], [1.0])
    """
    columns = np.column_stack([counts, sums]).astype(np.float64)
    means = bootstrap_means(columns, samples, seed)
    tail = (1.0 - level) / 2.0
    interval = np.quantile(means[:, 1:] / means[:, :1], [tail, 1.0 - tail], axis=0)
    total = columns.sum(axis=0)
    return total[1:] / total[0], interval
