r"""Ranking metrics per user, over the whole catalogue, with binary gain.

For a user with targets T and a ranked list r_1, r_2, ...:

    recall@k   = |T and {r_1..r_k}| / |T|
    hit_rate@k = 1 if any of r_1..r_k is in T, else 0
    ndcg@k     = sum_{i<=k, r_i in T} 1/log2(i+1)  /  sum_{i<=min(|T|,k)} 1/log2(i+1)

With one target, recall and hit rate are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfcsmf.data.prepared import Csr
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation.lists import contains

METRICS = ("recall", "hit_rate", "ndcg")


def hits(positions: np.ndarray, targets: Csr) -> np.ndarray:
    """Returns which ranked positions are targets, bool [Q, K].

    Args:
      positions: int32 [Q, K], best first, distinct per row; -1 is no candidate.
      targets: one list of distinct catalogue positions per query.
    """
    return contains(targets, np.arange(len(positions))[:, None], positions)


def per_user_metrics(
    positions: np.ndarray, targets: Csr, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Returns every metric of every user, before any averaging.

    Args:
      positions: int32 [Q, K], best first, distinct per row; -1 is no candidate.
      targets: one non-empty list of distinct catalogue positions per query.
      ks: cut-offs, each from 1 to K.

    Returns:
      float64 [Q] by name: `recall@k`, `hit_rate@k` and `ndcg@k` for each k.

    Raises:
      ConfigError: if a k exceeds K, or a user has no target.

    Example:
      The targets 4 and 9 are found at the second place and not at all.

      >>> targets = Csr(np.array([0, 2]), np.array([4, 9]))
      >>> values = per_user_metrics(np.array([[7, 4, 5]]), targets, [1, 3])
      >>> float(values["recall@3"][0]), float(values["hit_rate@1"][0])
      (0.5, 0.0)
      >>> ideal = 1 + 1 / np.log2(3)
      >>> bool(np.isclose(values["ndcg@3"][0], 1 / np.log2(3) / ideal))
      True
    """
    _check(positions, targets, ks)
    found = hits(positions, targets)  # [Q, K]
    sizes = np.diff(targets.offsets)  # [Q]
    discounts = 1.0 / np.log2(np.arange(max(ks)) + 2.0)
    ideal = np.cumsum(discounts)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        counts = found[:, :k].sum(axis=1)
        gain = found[:, :k] @ discounts[:k]
        values[f"recall@{k}"] = counts / sizes
        values[f"hit_rate@{k}"] = (counts > 0).astype(np.float64)
        values[f"ndcg@{k}"] = gain / ideal[np.minimum(sizes, k) - 1]
    return values


def metric_names(ks: Sequence[int]) -> list[str]:
    """Returns the names `per_user_metrics` gives for these cut-offs, in order."""
    return [f"{metric}@{k}" for k in ks for metric in METRICS]


def _check(positions: np.ndarray, targets: Csr, ks: Sequence[int]) -> None:
    queries, width = positions.shape
    if not ks or min(ks) < 1 or max(ks) > width:
        raise ConfigError(
            f"Cut-offs should be from 1 to the {width} ranked positions. "
            f"Received: {list(ks)}."
        )
    if len(targets.offsets) != queries + 1:
        raise ConfigError(
            f"Targets should have one list per query, {queries}. "
            f"Received: {len(targets.offsets) - 1}."
        )
    if (np.diff(targets.offsets) < 1).any():
        raise ConfigError(
            "Every evaluated user should have a target. Received: users without. "
            "Drop them first, as the protocols do."
        )
