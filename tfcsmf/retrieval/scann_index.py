"""ScaNN with parameters set by measurement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.errors import ExportError
from tfcsmf.retrieval.approximate import ApproximateIndex, Setting, widened
from tfcsmf.retrieval.exact_index import ABSENT
from tfcsmf.retrieval.scann_searcher import SearcherResource

# Codes that can be compared in the time of re-ranking one candidate.
_RERANKING = 45


class ScannIndex(ApproximateIndex):
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

    kind = "scann"

    def __init__(
        self,
        candidates: np.ndarray,
        k: int,
        num_leaves: int | None = None,
        leaves_to_search: int = 1,
        reorder: int = 1000,
    ) -> None:
        super().__init__(len(candidates), k)
        self.num_leaves = num_leaves or max(2, round(math.sqrt(self.size)))
        self.leaves_to_search = leaves_to_search
        self.reorder = min(reorder, self.size)
        self.searcher = _train(candidates, self.k, self.num_leaves, self.reorder)
        self.resource = SearcherResource(self.searcher)

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors; see `Index.vectors`."""
        return tf.convert_to_tensor(self.searcher.dataset)  # kept for re-ranking

    def search(
        self,
        queries: tf.Tensor,
        count: tf.Tensor | int,
        allowed: tf.Tensor | None = None,
        widening: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches approximately; see `Index.search`."""
        from scann.scann_ops.py import scann_ops

        searcher = scann_ops.ScannSearcher(self.resource.resource_handle)
        leaves = tf.minimum(widened(self.leaves_to_search, widening), self.num_leaves)
        fetch = tf.convert_to_tensor(count, tf.int32)
        if allowed is not None:
            # ScaNN cannot be told: twice as many as hold `count` of them on average.
            fetch = tf.minimum(widened(2 * fetch, widening), self.size)
        # Fewer re-ranked candidates than results would cut the results.
        reorder = tf.maximum(self.reorder, fetch)
        found = searcher.search_batched_parallel(queries, fetch, reorder, leaves)
        # ScaNN reports position 0 and NaN where the leaves held too few.
        absent = tf.math.is_nan(found.distances)
        if allowed is not None:
            absent |= ~tf.gather(allowed, found.indices)
        scores = tf.where(absent, -np.inf, found.distances)
        positions = tf.where(absent, ABSENT, found.indices)
        if allowed is None:
            return scores, positions
        scores, order = tf.math.top_k(scores, count)
        return scores, tf.gather(positions, order, batch_dims=1)

    def settings(self, fetch: int) -> Iterator[Setting]:
        """Yields leaves and re-ranked candidates; see `ApproximateIndex.settings`.

        Among many millions of items more of them lie within what codes cannot tell
        apart, which more leaves do not mend, but re-ranking more candidates does.
        """
        fractions = [2.0**power / 128 for power in range(8)]
        leaves = {max(1, round(self.num_leaves * part)) for part in fractions}
        reorders = {min(fetch * factor, self.size) for factor in (1, 3, 10, 30, 100)}

        def cost(setting: tuple[int, int]) -> float:
            searched = setting[0] / self.num_leaves * self.size
            return searched + _RERANKING * setting[1]

        for count, reorder in sorted(itertools.product(leaves, reorders), key=cost):
            yield {"leaves_to_search": count, "reorder": reorder}

    def describe(self) -> dict[str, Any]:
        """Returns what `cascade.json` says of the index."""
        return {
            "kind": self.kind,
            "is_exact": False,
            "num_leaves": self.num_leaves,
            "leaves_to_search": self.leaves_to_search,
            "reorder": self.reorder,
        } | self.measured()


def _train(candidates: np.ndarray, k: int, leaves: int, reorder: int) -> Any:
    try:
        import scann  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "retrieval.index=scann needs the package scann. Received: "
            f"{error}. Install it, or set retrieval.index=ivf."
        ) from error
    from scann.scann_ops.py import scann_ops

    builder = scann_ops.builder(candidates, k, "dot_product")
    builder = builder.tree(num_leaves=leaves, num_leaves_to_search=leaves)
    builder = builder.score_ah(dimensions_per_block=2).reorder(reorder)
    trained = builder.build()
    state = trained.serialize_to_module()
    # A handle only names what it belongs to, so nothing else would ever free it.
    tf.raw_ops.DestroyResourceOp(resource=trained.searcher_handle)
    return state
