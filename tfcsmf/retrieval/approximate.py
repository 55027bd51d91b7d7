"""What approximate indexes share: parameters set by measured recall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.evaluation.topk import Catalogue
from tfcsmf.retrieval.exact_index import ABSENT, Index

Setting = Mapping[str, float]


class ApproximateIndex(Index):
    """An index whose search parameters are attributes that may be changed.

    Attributes:
      kind: name of the index in the configuration.
    """

    kind: str
    is_exact = False

    def __init__(self, size: int, k: int) -> None:
        super().__init__()
        self.size, self.k = size, min(k, size)
        # A function: TensorFlow would wrap a dictionary for tracking.
        self._measured: Callable[[], dict[str, Any]] = dict

    def settings(self, fetch: int) -> Iterator[Setting]:
        """Yields attributes and values to try, the cheapest first.

        Args:
          fetch: results a request with exclusions asks for.
        """
        raise NotImplementedError

    def calibrate(
        self, queries: np.ndarray, target: float, largest_fetch: int
    ) -> list[dict[str, float]]:
        """Widens the search until its recall at k reaches a target.

        Args:
          queries: float32 [Q, d], fused with random weights.
          target: mean share of the exact top k to be found.
          largest_fetch: results a request with exclusions asks for.

        Returns:
          The recall curve: the parameters and `recall` of every setting tried; the
          last one is kept.
        """
        _, exact = Catalogue(self.vectors().numpy()).top_k(queries, self.k)
        curve: list[dict[str, float]] = []
        for setting in self.settings(min(largest_fetch, self.size)):
            for name, value in setting.items():
                setattr(self, name, value)
            _, found = self.search(tf.constant(queries), self.k)
            curve.append({**setting, "recall": overlap(found.numpy(), exact)})
            if curve[-1]["recall"] >= target:
                break
        measured = {
            "recall": curve[-1]["recall"],
            "recall_k": self.k,
            "target_recall": target,
            "target_reached": curve[-1]["recall"] >= target,
            "queries": len(queries),
            "curve": curve,
        }
        self._measured = lambda: measured
        return curve

    def measured(self) -> dict[str, Any]:
        """Returns what `calibrate` found, as JSON-able values."""
        return self._measured()


def widened(setting: tf.Tensor | int, factor: tf.Tensor | float) -> tf.Tensor:
    """Returns a search parameter times a factor, rounded up, int32."""
    wide = tf.cast(setting, tf.float32) * tf.cast(factor, tf.float32)
    return tf.cast(tf.math.ceil(wide), tf.int32)


def random_fusions(query_vectors: np.ndarray, seed: int) -> np.ndarray:
    """Fuses each query with weights of its own, uniform on the simplex.

    Args:
      query_vectors: float32 [Q, S, d], calibrated.
      seed: of the weights.

    Returns:
      float32 [Q, d].
    """
    rng = np.random.default_rng([seed, 13])
    count, objectives, _ = query_vectors.shape
    weights = rng.dirichlet(np.ones(objectives), count)
    return np.einsum("qs,qsd->qd", weights, query_vectors).astype(np.float32)


def overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact positions that were found, both int [Q, k]."""
    size = int(max(found.max(initial=0), exact.max(initial=0))) + 1
    rows = np.arange(len(exact), dtype=np.int64)[:, np.newaxis] * size
    hits = np.isin((exact + rows).ravel(), (found + rows)[found != ABSENT])
    return float(hits.mean())
