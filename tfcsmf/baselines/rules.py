"""The learning-free references as systems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfcsmf.baselines.item_knn import ItemKnnRanker
from tfcsmf.baselines.popularity import PopularityRanker
from tfcsmf.baselines.seen_first import SeenFirstRanker
from tfcsmf.baselines.system import Cost, System
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation.ranker import Ranker

RULES: dict[str, Callable[[PreparedLog], Ranker]] = {
    "popularity": PopularityRanker,
    "seen_first": SeenFirstRanker,
    "item_knn": ItemKnnRanker,
    "item_knn_all": lambda log: ItemKnnRanker(log, all_events=True),
}


class RuleSystem(System):
    """A ranking rule without parameters.

    Args:
      name: one of `RULES`.
      config: kept; rules have no settings.
      show_progress: ignored.
    """

    def __init__(self, name: str, config: Config, show_progress: bool = False) -> None:
        super().__init__(config, show_progress)
        self.name = self.trained_as = name
        self._ranker: Ranker | None = None

    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """Counts what the rule needs; writes nothing."""
        self._ranker = RULES[self.name](log)

    def ranker(self, objective: str) -> Ranker:
        """See `System.ranker`."""
        if self._ranker is None:
            raise ConfigError(
                f"{self.name!r} should be fitted before it is asked. Call `fit`."
            )
        return self._ranker

    def cost(self) -> Cost:
        """See `System.cost`."""
        return Cost(0, 0, 0, 0, 0.0, 0)
