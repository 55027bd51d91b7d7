"""One contract for everything that is compared: CSMF and what one would do instead."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.prepared import EvaluationSet, PreparedLog
from tfcsmf.errors import ConfigError, nearest
from tfcsmf.evaluation.ranker import Ranker, VectorRanker


@dataclass(frozen=True)
class Cost:
    """What a system costs to keep, to ask and to train.

    Attributes:
      networks: trained networks that have to be kept and served.
      parameters: trainable numbers of all of them.
      dimension: of one vector in an index; 0 without vectors.
      index_queries: index queries for a request that mixes all objectives.
      training_seconds: evaluation left out.
      examples_seen: positives trained on, repetitions counted.
    """

    networks: int
    parameters: int
    dimension: int
    index_queries: int
    training_seconds: float
    examples_seen: int


class System(abc.ABC):
    """A way to retrieve for several objectives.

    Args:
      config: the same for all systems that are compared.
      show_progress: draw progress bars on stderr.

    Attributes:
      name: in tables and folders.
      trained_as: name of the training this system uses; systems that share one
        are different uses of the same networks.
    """

    name: str
    trained_as: str

    def __init__(self, config: Config, show_progress: bool = False) -> None:
        self.config = config
        self.show_progress = show_progress

    @abc.abstractmethod
    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """Trains, or continues what a killed process began in the folder.

        A finished training is loaded; nothing is trained then.

        Args:
          log: `train` and `validation` are trained and stopped on; `test_histories`
            are the histories of whatever is ranked later.
          folder: `checkpoints/` and `logs/` are written below it.
        """

    @abc.abstractmethod
    def ranker(self, objective: str) -> Ranker:
        """Returns what ranks the catalogue for an objective; after `fit`."""

    @abc.abstractmethod
    def cost(self) -> Cost:
        """Returns what the fitted system costs."""


class VectorSystem(System):
    """A system that ranks by inner products of trained vectors.

    Subclasses train in `fit` and say in `_network` which trained network, and which
    of its outputs, an objective is served by.
    """

    def __init__(self, config: Config, show_progress: bool = False) -> None:
        super().__init__(config, show_progress)
        self.log: PreparedLog | None = None
        self.trainers: list[CascadeTrainer] = []
        self._candidates: dict[int, np.ndarray] = {}

    @property
    def index_queries(self) -> int:
        """See `Cost`; one index for all objectives unless a subclass has more."""
        return 1

    @abc.abstractmethod
    def _network(self, objective: int) -> tuple[CascadeTrainer, int]:
        """Returns the trainer of an objective's network, and the objective there."""

    def _query_set(self, objective: int, part: EvaluationSet) -> EvaluationSet:
        """Returns the queries as the objective's network takes them."""
        return part

    def candidate_vectors(self, objective: str) -> np.ndarray:
        """Returns the vectors an objective's queries are compared with, [C, d]."""
        trainer, _ = self._network(self._number(objective))
        if id(trainer) not in self._candidates:
            vectors = trainer.encoder.candidates(trainer.num_stages)
            self._candidates[id(trainer)] = vectors
        return self._candidates[id(trainer)]

    def query_vectors(self, objective: str, part: EvaluationSet) -> np.ndarray:
        """Returns the vectors of queries of an objective, float32 [q, d]."""
        number = self._number(objective)
        trainer, stage = self._network(number)
        return trainer.encoder.queries(
            self._query_set(number, part), trainer.log.test_histories, stage
        )

    def ranker(self, objective: str) -> Ranker:
        """See `System.ranker`."""
        return VectorRanker(
            self.query_vectors,
            self.candidate_vectors(objective),
            self.config.evaluation.query_batch,
            self.config.evaluation.candidate_block,
        )

    def cost(self) -> Cost:
        """See `System.cost`."""
        stages = [stage for t in self.trainers for stage in t.progress.finished]
        kept = self._kept()
        return Cost(
            len(kept),
            sum(trainer.model.num_parameters for trainer in kept),
            kept[0].model.dimension,
            self.index_queries,
            round(sum(stage["seconds"] for stage in stages), 3),
            sum(stage["examples_seen"] for stage in stages),
        )

    def _kept(self) -> list[CascadeTrainer]:
        """Returns the trainers whose networks serve an objective."""
        log = self._fitted()
        used = [self._network(number)[0] for number in range(len(log.objectives))]
        return [trainer for trainer in self.trainers if trainer in used]

    def _fitted(self) -> PreparedLog:
        if self.log is None:
            raise ConfigError(
                f"{self.name!r} should be fitted before it is asked. Call `fit`."
            )
        return self.log

    def _number(self, objective: str) -> int:
        objectives = self._fitted().objectives
        if objective not in objectives:
            raise ConfigError(
                f"An objective should be one of {list(objectives)}. "
                f"Received: {objective!r}.{nearest(objective, objectives)}"
            )
        return objectives.index(objective)


def train(trainer: CascadeTrainer) -> CascadeTrainer:
    """Trains to the end, from the newest checkpoint if there is one."""
    trainer.resume()
    trainer.train()
    return trainer
