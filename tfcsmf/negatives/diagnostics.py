"""What a run's semantic clusters look like, in figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcsmf.data.prepared import EntityTable
from tfcsmf.negatives.clusters import SemanticClusters


def purity(clusters: np.ndarray, categories: np.ndarray) -> float:
    """Returns the share of items that are of the commonest category of their cluster.

    Args:
      clusters: int [n], those below 0 are left out.
      categories: int [n].

    Example:
      >>> purity(np.array([0, 0, 1]), np.array([4, 5, 5])).__round__(2)
      0.67
    """
    kept = clusters >= 0
    _, numbers = np.unique(categories[kept], return_inverse=True)
    width = int(numbers.max(initial=0)) + 1
    keys, counts = np.unique(clusters[kept] * width + numbers, return_counts=True)
    most = np.zeros(int(clusters.max(initial=0)) + 1, np.int64)
    np.maximum.at(most, keys // width, counts)
    return float(most.sum() / max(kept.sum(), 1))


def describe_clusters(clusters: SemanticClusters, items: EntityTable) -> dict[str, Any]:
    """Returns sizes, purity and coverage of clusters as plain values.

    Args:
      clusters: of the catalogue.
      items: its categorical features are what purity is measured against.
    """
    first, second = clusters.first, clusters.second
    width = len(clusters.second_centres)
    both = np.where(first < 0, -1, first.astype(np.int64) * width + second)
    coded = both[both >= 0]
    _, occupied = np.unique(coded, return_counts=True)
    sizes = np.bincount(first[first >= 0], minlength=len(clusters.centres))
    known = {
        e.name: items.features[e.name]
        for e in items.encoders
        if e.kind == "categorical"
    }
    return {
        "modalities": list(clusters.projections),
        "items": len(first),
        "without_vectors": int(np.sum(first < 0)),
        "first_level": len(clusters.centres),
        "second_level": width,
        "sizes": np.sort(sizes)[::-1].tolist(),
        "pairs_of_codes": len(occupied),
        "items_per_pair": {
            "mean": float(occupied.mean()) if len(occupied) else 0.0,
            "largest": int(occupied.max(initial=0)),
        },
        "purity": {
            name: {
                "first_level": purity(first, values),
                "both_levels": purity(both, values),
                "largest_category": purity(np.minimum(first, 0), values),
            }
            for name, values in known.items()
        },
    }
