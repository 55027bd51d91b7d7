"""Learning-free references: what a model has to beat."""

from collections.abc import Callable

from tfcsmf.baselines.item_knn import ItemKnnRanker
from tfcsmf.baselines.popularity import PopularityRanker
from tfcsmf.baselines.seen_first import SeenFirstRanker
from tfcsmf.config import EvaluationConfig
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.evaluation.ranker import Ranker


def build_baselines(
    prepared: PreparedLog, config: EvaluationConfig
) -> dict[str, Ranker]:
    """Returns the references named by `evaluation.baselines`, in that order."""
    build: dict[str, Callable[[PreparedLog], Ranker]] = {
        "popularity": PopularityRanker,
        "seen_first": SeenFirstRanker,
    }
    return {name: build[name](prepared) for name in config.baselines}


__all__ = ["ItemKnnRanker", "PopularityRanker", "SeenFirstRanker", "build_baselines"]
