"""What can be evaluated: anything that ranks the catalogue for queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tfcsmf.data.prepared import Csr, EvaluationSet
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation.topk import Catalogue

QueryVectors = Callable[[str, EvaluationSet], np.ndarray]


class Ranker(Protocol):
    """A system under evaluation: a model or a learning-free reference."""

    def rank(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        k: int,
    ) -> np.ndarray:
        """Ranks the catalogue for some queries of an evaluation set.

        Args:
          objective: what is ranked for.
          evaluation_set: the queries.
          rows: int [n], which of its queries are asked for.
          exclude: n lists of catalogue positions that must not be returned.
          k: length of the ranking.

        Returns:
          int32 [n, k] catalogue positions, best first, distinct; -1 where the
          catalogue runs out.
        """
        ...


class VectorRanker:
    """Ranks by inner products of query and candidate vectors.

    It is a snapshot: query vectors are computed once per evaluation set and kept
    for the next call, so build a new ranker when weights have changed.

    Args:
      query_vectors: takes an objective and an evaluation set with q queries, and
        gives float32 [q, d]. Weighted mixes are rankers of their own: give a
        function that returns the fused vectors.
      candidate_vectors: float32 [C, d].
      query_batch: queries scored at once.
      candidate_block: candidates scored at once.

    Example:
      >>> nothing = Csr(np.array([0, 0]), np.zeros(0, np.int32))
      >>> queries = EvaluationSet(
      ...     np.array([0]), Csr(np.array([0, 1]), np.array([2])),
      ...     np.zeros((1, 0), np.int64), nothing, nothing,
      ... )
      >>> ranker = VectorRanker(
      ...     lambda objective, queries: np.ones((1, 1)), np.array([[1], [3], [2]])
      ... )
      >>> ranker.rank("buy", queries, np.array([0]), nothing, 2).tolist()
      [[1, 2]]
    """

    def __init__(
        self,
        query_vectors: QueryVectors,
        candidate_vectors: np.ndarray,
        query_batch: int = 512,
        candidate_block: int = 65536,
    ):
        self._query_vectors = query_vectors
        self._catalogue = Catalogue(candidate_vectors, candidate_block)
        self._query_batch = query_batch
        # The last queries encoded: both protocols ask for the same ones.
        self._encoded: tuple[str, EvaluationSet, np.ndarray] | None = None

    def rank(
        self,
        objective: str,
        evaluation_set: EvaluationSet,
        rows: np.ndarray,
        exclude: Csr,
        k: int,
    ) -> np.ndarray:
        """Ranks the catalogue; see `Ranker.rank`."""
        vectors = self._encode(objective, evaluation_set)[rows]
        _, positions = self._catalogue.top_k(vectors, k, exclude, self._query_batch)
        return positions

    def _encode(self, objective: str, evaluation_set: EvaluationSet) -> np.ndarray:
        kept = self._encoded
        if kept and kept[0] == objective and kept[1] is evaluation_set:
            return kept[2]
        vectors = np.asarray(self._query_vectors(objective, evaluation_set))
        if len(vectors) != len(evaluation_set.users):
            raise ConfigError(
                "query_vectors should return one vector per query, "
                f"{len(evaluation_set.users)}. Received: {len(vectors)}."
            )
        self._encoded = (objective, evaluation_set, vectors)
        return vectors
