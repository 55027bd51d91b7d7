"""Scales that give equal weights equal influence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tfcsmf.data.prepared import EvaluationSet

QueryVectors = Callable[[EvaluationSet, int], np.ndarray]


def objective_scales(
    query_vectors: QueryVectors,
    candidate_vectors: np.ndarray,
    evaluation_sets: Sequence[EvaluationSet],
    seed: int,
    sample: int = 2048,
) -> np.ndarray:
    r"""Measures how far each objective spreads the candidates of a query.

    Logits of different objectives have different scales, so that weights would
    mean little. The scale of objective o is the root mean square, over
    validation queries u, of the standard deviation of its scores within a query:

        scale_o = sqrt( mean_u Var_j <u^(o), v_j> ),   j uniform in the catalogue.

    Deviations within a query, not over all pairs: what a query adds to all of its
    candidates alike does not change a ranking (our reading; the paper does not say).

    Args:
      query_vectors: takes an evaluation set and a 0-based objective, gives
        u^(o), float [q, d].
      candidate_vectors: float [C, d].
      evaluation_sets: validation queries, one set per objective in cascade order.
        An objective without any borrows the queries of the others.
      seed: of the sample.
      sample: at most this many candidates.

    Returns:
      float32 [S], finite and positive; 1.0 where nothing can be measured.

    Example:
      >>> from tfcsmf.data.prepared import Csr
      >>> none = Csr(np.array([0, 0]), np.zeros(0, np.int32))
      >>> queries = EvaluationSet(
      ...     np.array([0]), none, np.zeros((1, 0), np.int64), none, none
      ... )
      >>> candidates = np.array([[1.0], [3.0]])
      >>> objective_scales(
      ...     lambda queries, stage: np.array([[5.0]]), candidates, [queries], seed=0
      ... ).tolist()
      [5.0]
    """
    rng = np.random.default_rng([seed, 11])
    size = len(candidate_vectors)
    chosen = np.sort(rng.choice(size, min(sample, size), replace=False))
    candidates = np.asarray(candidate_vectors)[chosen].astype(np.float64)
    candidates = candidates - candidates.mean(axis=0)
    covariance = candidates.T @ candidates / max(len(chosen), 1)  # [d, d]
    scales = np.ones(len(evaluation_sets), np.float32)
    for stage, own in enumerate(evaluation_sets):
        sets = [own] if len(own.users) else evaluation_sets
        parts = [query_vectors(part, stage) for part in sets if len(part.users)]
        if not parts:
            continue
        queries = np.concatenate(parts).astype(np.float64)
        # Var_j <u, v_j> = u' Cov(v) u
        variance = np.mean(np.sum(queries @ covariance * queries, axis=1))
        scale = np.float32(np.sqrt(max(variance, 0.0)))
        if np.isfinite(scale) and scale > 1e-12:
            scales[stage] = scale
    return scales
