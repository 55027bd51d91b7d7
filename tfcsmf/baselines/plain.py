"""One plain two-tower network per objective: trained apart, or one after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.baselines.system import VectorSystem, train
from tfcsmf.cascade.capacity import snapshot
from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.prepared import EvaluationSet, Examples, Histories, PreparedLog


class Separate(VectorSystem):
    """A two-tower network per objective, each on its own objective's events.

    Every network sees all histories as query features and the whole catalogue. It
    is a cascade of one stage: nothing is pruned.
    """

    name = trained_as = "separate"

    @property
    def index_queries(self) -> int:
        """One index per network."""
        return len(self._fitted().objectives)

    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """See `System.fit`."""
        self.trainers, self._candidates = [], {}
        for objective in log.objectives:
            trainer = self._trainer(
                log, objective, Path(folder) / objective_folder(log, objective)
            )
            self._prepare(trainer)
            self.trainers.append(train(trainer))
        self.log = log

    def _trainer(
        self, log: PreparedLog, objective: str, folder: Path
    ) -> CascadeTrainer:
        config = plain_config(self.config, objective)
        own = self._log_of(log, objective)
        model = build_model(config, own)
        return CascadeTrainer(
            config, own, model, folder, show_progress=self.show_progress
        )

    def _log_of(self, log: PreparedLog, objective: str) -> PreparedLog:
        return plain_log(log, objective)

    def _prepare(self, trainer: CascadeTrainer) -> None:
        """Sets what a network starts from; called before it is trained."""

    def _network(self, objective: int) -> tuple[CascadeTrainer, int]:
        return self.trainers[objective], 0


class SeparateOwnHistory(Separate):
    """As `Separate`, and of the histories too each network sees only its own."""

    name = trained_as = "separate_own_history"

    def _log_of(self, log: PreparedLog, objective: str) -> PreparedLog:
        return own_history(plain_log(log, objective), objective)

    def _query_set(self, objective: int, part: EvaluationSet) -> EvaluationSet:
        log = self._fitted()
        return _own_columns(part, log, log.objectives[objective])


class Finetune(Separate):
    """The whole network, tuned objective by objective; each at its own checkpoint.

    Stage t starts from the parameters of stage t - 1, with fresh optimizer slots,
    and all of them move. To serve every objective at its best, a copy of the network
    is kept at the end of each stage: as many networks as objectives.
    """

    name = trained_as = "finetune"

    def _prepare(self, trainer: CascadeTrainer) -> None:
        if not self.trainers:
            return
        values = snapshot(self.trainers[-1].model)
        for parameter in trainer.model.owned_parameters:
            parameter.variable.assign(values[parameter.name])


class FinetuneLast(Finetune):
    """The network `Finetune` ends with, alone: one network that may have forgotten."""

    name = "finetune_last"

    @property
    def index_queries(self) -> int:
        """One network, the same vectors for all objectives."""
        return 1

    def _network(self, objective: int) -> tuple[CascadeTrainer, int]:
        return self.trainers[-1], 0


def objective_folder(log: PreparedLog, objective: str) -> str:
    """Returns a folder name; event names may hold any character."""
    return f"stage_{log.objectives.index(objective)}"


def plain_config(config: Config, objective: str) -> Config:
    """Returns the configuration of a network for one objective.

    Settings of other objectives are left out; nothing is kept in reserve.
    """
    tree: dict[str, Any] = config.to_dict()
    cascade = tree["cascade"]
    cascade["objectives"], cascade["reserve"] = [objective], False
    for section in (cascade, tree["retrieval"]):
        key = "stages" if section is cascade else "weights"
        section[key] = {k: v for k, v in section[key].items() if k == objective}
    return Config.from_dict(tree)


def plain_log(log: PreparedLog, objective: str) -> PreparedLog:
    """Returns the log of one objective, all histories included."""
    return replace(
        log,
        objectives=(objective,),
        train={objective: log.train[objective]},
        validation={objective: log.validation[objective]},
        test={objective: log.test[objective]},
        known={objective: log.known[objective]},
    )


def own_history(log: PreparedLog, objective: str) -> PreparedLog:
    """Returns a log of one objective without the histories of other events."""

    def only(histories: Histories) -> Histories:
        lists = histories.lists
        return Histories({k: v for k, v in lists.items() if k == objective})

    examples = log.train[objective]
    column = _columns(log, objective)
    return replace(
        log,
        history_events=tuple(e for e in log.history_events if e == objective),
        train={objective: Examples(examples.pairs, examples.history_end[:, column])},
        train_histories=only(log.train_histories),
        test_histories=only(log.test_histories),
        validation={objective: _own_columns(log.validation[objective], log, objective)},
        test={objective: _own_columns(log.test[objective], log, objective)},
    )


def _own_columns(
    part: EvaluationSet, log: PreparedLog, objective: str
) -> EvaluationSet:
    return replace(part, history_end=part.history_end[:, _columns(log, objective)])


def _columns(log: PreparedLog, objective: str) -> np.ndarray:
    return np.flatnonzero(np.array([e == objective for e in log.history_events], bool))
