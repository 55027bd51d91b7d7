"""ScaNN with parameters set by measurement."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.errors import ExportError
from tfcsmf.evaluation.topk import Catalogue
from tfcsmf.retrieval.indexes import ABSENT, Index

_LOG = logging.getLogger(__name__)


class ScannIndex(Index):
    """Approximate search: a tree, 4-bit codes, then exact re-ranking.

    Codes choose `reorder` candidates from the leaves searched; those are scored
    again in float32, so returned scores are inner products.

    Args:
      candidates: float32 [C, d], C >= 1000.
      k: results per query.
      num_leaves: leaves of the tree; default sqrt(C).
      leaves_to_search: leaves searched per query; may be changed.
      reorder: candidates re-ranked per query; may be changed.

    Raises:
      ExportError: if scann is not installed.
    """

    is_exact = False

    def __init__(
        self,
        candidates: np.ndarray,
        k: int,
        num_leaves: int | None = None,
        leaves_to_search: int = 1,
        reorder: int = 1000,
    ) -> None:
        super().__init__()
        self.size, self.dimension = candidates.shape
        self.k = min(k, self.size)
        self.num_leaves = num_leaves or max(2, round(math.sqrt(self.size)))
        self.leaves_to_search = leaves_to_search
        self.reorder = min(reorder, self.size)
        self.searcher = _train(candidates, self.k, self.num_leaves, self.reorder)
        # A function: TensorFlow would wrap a dictionary for tracking.
        self._measured: Callable[[], dict[str, Any]] = dict

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors; see `Index.vectors`."""
        return tf.convert_to_tensor(self.searcher.dataset)  # kept for re-ranking

    def search(
        self, queries: tf.Tensor, count: tf.Tensor | int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches approximately; see `Index.search`."""
        from scann.scann_ops.py import scann_ops

        searcher = scann_ops.searcher_from_module(self.searcher)
        # Fewer re-ranked candidates than results would cut the results.
        reorder = tf.maximum(self.reorder, count)
        found = searcher.search_batched_parallel(
            queries, count, reorder, self.leaves_to_search
        )
        # ScaNN reports position 0 and NaN where the leaves held too few.
        absent = tf.math.is_nan(found.distances)
        return (
            tf.where(absent, -np.inf, found.distances),
            tf.where(absent, ABSENT, found.indices),
        )

    def calibrate(
        self, queries: np.ndarray, target: float, largest_fetch: int
    ) -> list[dict[str, float]]:
        """Widens the search until its recall at k reaches a target.

        Args:
          queries: float32 [Q, d], fused with random weights.
          target: mean share of the exact top k to be found.
          largest_fetch: results a request with exclusions asks for.

        Returns:
          The recall curve: `leaves_to_search`, `reorder` and `recall` of every
          setting tried; the last one is kept.
        """
        _, exact = Catalogue(self.vectors().numpy()).top_k(queries, self.k)
        curve: list[dict[str, float]] = []
        for leaves, reorder in self._settings(min(largest_fetch, self.size)):
            self.leaves_to_search, self.reorder = leaves, reorder
            _, found = self.search(tf.constant(queries), self.k)
            recall = _overlap(found.numpy(), exact)
            curve.append(
                {"leaves_to_search": leaves, "reorder": reorder, "recall": recall}
            )
            if recall >= target:
                break
        reached = curve[-1]["recall"] >= target
        if not reached:
            _LOG.warning(
                "ScaNN reaches recall@%d %.4f with all leaves, below "
                "retrieval.target_recall=%g. Use retrieval.index=exact for more.",
                self.k,
                curve[-1]["recall"],
                target,
            )
        measured = {
            "recall": curve[-1]["recall"],
            "recall_k": self.k,
            "target_recall": target,
            "target_reached": reached,
            "queries": len(queries),
            "curve": curve,
        }
        self._measured = lambda: measured
        return curve

    def _settings(self, fetch: int) -> Iterator[tuple[int, int]]:
        """Yields (leaves, reorder), the cheapest first."""
        fractions = [min(1.0, 2.0**power / 128) for power in range(8)]
        leaves = sorted({max(1, round(self.num_leaves * f)) for f in fractions})
        for count in leaves:
            for factor in (1, 3):
                yield count, min(fetch * factor, self.size)
        yield self.num_leaves, min(fetch * 10, self.size)

    def describe(self) -> dict[str, Any]:
        """Returns what `cascade.json` says of the index."""
        return {
            "kind": "scann",
            "is_exact": False,
            "num_leaves": self.num_leaves,
            "leaves_to_search": self.leaves_to_search,
            "reorder": self.reorder,
        } | self._measured()


def build_scann(
    candidates: np.ndarray,
    calibration_queries: np.ndarray,
    settings: RetrievalConfig,
    seed: int,
) -> ScannIndex:
    """Trains an index and calibrates it; see `build_index`."""
    index = ScannIndex(candidates, settings.k)
    queries = random_fusions(calibration_queries, seed)[: settings.calibration_queries]
    fetch = settings.k + settings.max_exclusions
    index.calibrate(queries, settings.target_recall, fetch)
    return index


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


def _train(candidates: np.ndarray, k: int, leaves: int, reorder: int) -> Any:
    try:
        import scann  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "retrieval.index=scann needs the package scann. Received: "
            f"{error}. Install it, or set retrieval.index=exact."
        ) from error
    import tensorflow_recommenders as tfrs

    layer = tfrs.layers.factorized_top_k.ScaNN(
        k=k,
        num_leaves=leaves,
        num_leaves_to_search=leaves,
        dimensions_per_block=2,
        num_reordering_candidates=reorder,
    )
    layer.index(tf.constant(candidates, tf.float32))
    # The layer's own call freezes the number of leaves; calibration and requests
    # with exclusions need it per search, so the trained searcher is used directly.
    return layer._serialized_searcher


def _overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of the exact positions that were found, both int [Q, k]."""
    size = int(max(found.max(initial=0), exact.max(initial=0))) + 1
    rows = np.arange(len(exact), dtype=np.int64)[:, np.newaxis] * size
    hits = np.isin((exact + rows).ravel(), (found + rows)[found != ABSENT])
    return float(hits.mean())
