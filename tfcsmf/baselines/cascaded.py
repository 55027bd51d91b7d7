"""CSMF itself, and its variants, as systems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfcsmf.baselines.system import VectorSystem, train
from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog


class CsmfSystem(VectorSystem):
    """CSMF: one network, one vector and one index query for all objectives.

    Args:
      config: of the comparison.
      show_progress: draw progress bars on stderr.
      name: another name for a variant.
      assignments: `path=value` settings of the variant. One of a stage holds for all
        stages: settings of single objectives do not take precedence over it.
    """

    def __init__(
        self,
        config: Config,
        show_progress: bool = False,
        name: str = "csmf",
        assignments: Sequence[str] = (),
    ) -> None:
        super().__init__(with_assignments(config, assignments), show_progress)
        self.name = self.trained_as = name

    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """See `System.fit`."""
        model = build_model(self.config, log)
        self._candidates = {}
        self.trainers = [
            train(
                CascadeTrainer(
                    self.config, log, model, folder, show_progress=self.show_progress
                )
            )
        ]
        self.log = log

    def _network(self, objective: int) -> tuple[CascadeTrainer, int]:
        return self.trainers[0], objective


def with_assignments(config: Config, assignments: Sequence[str]) -> Config:
    """Returns a configuration with settings replaced, those of all stages too.

    Example:
      >>> config = Config.from_dict({"cascade": {"stages": {"click": {"tau": 0.2}}}})
      >>> with_assignments(config, ["cascade.stage.tau=0.1"]).stage("click").tau
      0.1
    """
    tree = config.to_dict()
    for assignment in assignments:
        section, _, field = assignment.partition("=")[0].rpartition(".")
        if section == "cascade.stage":
            for overrides in tree["cascade"]["stages"].values():
                overrides.pop(field, None)
    return Config.from_dict(tree, assignments)
