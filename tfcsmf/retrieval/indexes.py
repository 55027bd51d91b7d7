"""Which index a configuration asks for, built and calibrated."""

from __future__ import annotations

import logging

import numpy as np

from tfcsmf.config import RetrievalConfig
from tfcsmf.errors import ExportError
from tfcsmf.retrieval.approximate import ApproximateIndex, random_fusions
from tfcsmf.retrieval.exact_index import ExactIndex, Index
from tfcsmf.retrieval.ivf_index import IvfIndex
from tfcsmf.retrieval.scann_index import ScannIndex

_LOG = logging.getLogger(__name__)

# Below this size ScaNN's tree has too few points per leaf to be trained, and exact
# search is faster than any other.
_APPROXIMATE_MINIMUM = 1000
# Reading places in random order and decoding them takes about three times as long per
# candidate as exact search does, 1M x 64 on 2 cores.
_WORTHWHILE_SHARE = 0.25


def build_index(
    candidates: np.ndarray,
    calibration_queries: np.ndarray,
    settings: RetrievalConfig,
    seed: int = 0,
) -> Index:
    """Builds the index a configuration asks for.

    Args:
      candidates: float32 [C, d].
      calibration_queries: float32 [Q, S, d], query vectors per objective, each
        divided by its scale; used to set the parameters of
        approximate search.
      settings: `retrieval` of the configuration.
      seed: of the random weights.

    Raises:
      ExportError: for an empty catalogue or vectors that are not finite.
    """
    candidates = np.asarray(candidates, np.float32)
    if not len(candidates):
        raise ExportError("An index needs at least one candidate. Received: none.")
    if not np.isfinite(candidates).all():
        raise ExportError(
            "Candidate vectors should be finite. Received: NaN or infinity. Training "
            "has diverged: lower cascade.stage.learning_rate."
        )
    kind, size = settings.index, len(candidates)
    if kind == "auto":
        kind = "ivf" if size >= settings.approximate_from else "exact"
    if kind != "exact" and size < _APPROXIMATE_MINIMUM:
        _LOG.warning(
            "The index is exact: approximate search needs %d candidates, the catalogue "
            "has %d.",
            _APPROXIMATE_MINIMUM,
            size,
        )
        kind = "exact"
    if kind == "exact":
        return ExactIndex(candidates, settings.k)
    index = _build_approximate(kind, candidates, calibration_queries, settings, seed)
    found = index.measured()
    if found["target_reached"]:
        return index
    automatic = settings.index == "auto"
    _LOG.warning(
        "Approximate search (%s) reaches recall@%d %.4f at its widest, below "
        "retrieval.target_recall=%g. %s",
        kind,
        found["recall_k"],
        found["recall"],
        settings.target_recall,
        "The index is exact instead, which is not slower than to widen it further."
        if automatic
        else "Use retrieval.index=exact for more.",
    )
    return ExactIndex(candidates, settings.k) if automatic else index


def _build_approximate(
    kind: str,
    candidates: np.ndarray,
    calibration_queries: np.ndarray,
    settings: RetrievalConfig,
    seed: int,
) -> ApproximateIndex:
    """Trains an index and calibrates it; see `build_index`."""
    index: ApproximateIndex
    if kind == "scann":
        index = ScannIndex(candidates, settings.k)
    else:
        widest = _WORTHWHILE_SHARE if settings.index == "auto" else 1.0
        index = IvfIndex(candidates, settings.k, widest=widest, seed=seed)
    queries = random_fusions(calibration_queries, seed)[: settings.calibration_queries]
    fetch = settings.k + settings.max_exclusions
    index.calibrate(queries, settings.target_recall, fetch)
    return index
