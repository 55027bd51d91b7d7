"""One network trained on all objectives at once: union, shared bottom, MMoE, PLE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.baselines.joint_log import JointBatches, JointLog, join
from tfcsmf.baselines.objective_towers import (
    ExtractionTower,
    MixtureTower,
    SharedBottomTower,
)
from tfcsmf.baselines.plain import plain_config
from tfcsmf.baselines.system import VectorSystem, train
from tfcsmf.cascade.batch_loss import batch_loss
from tfcsmf.cascade.model import CSMF, Inputs, build_loss, build_towers
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.towers import bounded
from tfcsmf.towers.tower import NO_BLOCKS, Blocks


class JointModel(CSMF):
    """Two towers with a query vector per objective and one candidate vector.

    It is trained in a single stage, in which every parameter moves. Scores of
    objective o are <u^(o), v>: as the candidates have one vector, one index query
    serves any weighted mix of objectives.

    Args:
      query_tower: gives one vector per objective.
      candidate_tower: as for `CSMF`.
      loss: as for `CSMF`.
      normalize: all vectors have length 1, with `wide` towers every block of them.
    """

    query_tower: SharedBottomTower

    def query_vectors(
        self,
        inputs: Inputs,
        stage: int,
        training: bool = False,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
        part: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the vectors of objective `stage`, float [n, d]."""
        return self._bounded(
            self.query_tower(inputs, stage, seed=seed, blocks=blocks, part=part)
        )

    def candidate_vectors(
        self,
        inputs: Inputs,
        stage: int,
        training: bool = False,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
    ) -> tf.Tensor:
        """Returns the vectors, the same for all objectives, float [n, d]."""
        return self._bounded(
            self.candidate_tower(inputs, None, seed=seed, blocks=blocks)
        )

    def _bounded(self, vectors: tf.Tensor) -> tf.Tensor:
        if not self.normalize:
            return vectors
        shape = tf.shape(vectors)
        parts = self.query_tower.objectives if self.query_tower.wide else 1
        apart = tf.reshape(vectors, [-1, parts, self.dimension // parts])
        return tf.reshape(bounded(apart), shape)

    def compute_loss(
        self, inputs: Mapping[str, Any], training: bool = False
    ) -> tf.Tensor:
        """Returns the weighted mean of the positives' softmax for their objective.

        Args:
          inputs: a batch of `JointBatches`.
          training: switches dropout on.
        """
        seed = inputs["seed"] if training else None
        blocks = self.row_blocks(inputs.get("rows", {}))
        vectors = self.query_tower.vectors(inputs["query"], seed, blocks)  # [n, S, d]
        # With one head it serves every objective.
        head = tf.minimum(inputs["objective"], self.query_tower.objectives - 1)
        query = self._bounded(tf.gather(vectors, head, batch_dims=1))  # [n, d]
        other_seed = None if seed is None else seed + [0, 7]
        candidate = self.candidate_vectors(
            inputs["candidate"], 0, True, other_seed, blocks
        )
        # Weights are 1 on average, over an epoch.
        return batch_loss(
            self.task,
            inputs,
            query,
            candidate,
            self.negatives,
            probability=self.sampling_probability,
            normalized=self.normalize,
            sample_weight=inputs["weight"],
            training=training,
        )


class JointTrainer(CascadeTrainer):
    """Trains a `JointModel`, stopping early on the mean recall of all objectives.

    Args:
      config: its stage settings hold for all objectives.
      joint: see `join`.
      model: trained in place.
      directory: as for `CascadeTrainer`.
      show_progress: as for `CascadeTrainer`.
    """

    def __init__(
        self,
        config: Config,
        joint: JointLog,
        model: JointModel,
        directory: str | Path,
        show_progress: bool = True,
    ) -> None:
        super().__init__(
            config, joint.log, model, directory, show_progress=show_progress
        )
        self.joint = joint

    def _make_batches(
        self, objective: str, settings: BatchSettings, joint: bool
    ) -> StageBatches:
        return JointBatches(self.joint, settings)

    def validate(self, stage: int) -> float | None:
        """Returns the mean validation recall of the objectives that have pairs."""
        candidates = self.encoder.training_candidates(stage)
        recalls = [
            self._recall(objective, number, candidates)
            for number, objective in enumerate(self.joint.objectives)
            if len(self.log.validation[objective].users)
        ]
        known = [recall for recall in recalls if recall is not None]
        return float(np.mean(known)) if known else None


class JointSystem(VectorSystem):
    """One network for all objectives, trained on mixed batches.

    Args:
      config: of the comparison. Stage settings of single objectives are not used.
      show_progress: draw progress bars on stderr.

    Attributes:
      query_class: the query tower.
      one_score: one head, and so one score, for all objectives.
      wide: S blocks of `towers.dimension`, one per objective, on both sides; an upper
        reference with vectors S times as long. Else all share `towers.dimension`.
    """

    query_class: Callable[..., SharedBottomTower] = SharedBottomTower
    one_score = False
    wide = False

    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """See `System.fit`."""
        joint = join(log, self.one_score)
        config = plain_config(self.config, joint.name)
        model = self.build(log)
        trainer = JointTrainer(config, joint, model, folder, self.show_progress)
        self._candidates, self.trainers = {}, [train(trainer)]
        self.log = log

    def build(self, log: PreparedLog) -> JointModel:
        """Builds the untrained network."""
        tf.keras.utils.set_random_seed(self.config.seed)
        heads = 1 if self.one_score else len(log.objectives)
        towers = build_towers(
            self.config,
            log,
            type(self).query_class,
            heads if self.wide else 1,
            objectives=heads,
            wide=self.wide,
        )
        return JointModel(
            *towers, build_loss(self.config), normalize=self.config.towers.normalize
        )

    def _network(self, objective: int) -> tuple[CascadeTrainer, int]:
        return self.trainers[0], objective


class Union(JointSystem):
    """A plain two-tower on the weighted union of all objectives' pairs: one score."""

    name = trained_as = "union"
    one_score = True


class SharedBottom(JointSystem):
    """Shared hidden layers, a head per objective."""

    name = trained_as = "shared_bottom"


class Mmoe(JointSystem):
    """Shared experts, a gate and a head per objective."""

    name = trained_as = "mmoe"
    query_class = MixtureTower


class Ple(JointSystem):
    """Own and shared experts on two levels, gates and a head per objective."""

    name = trained_as = "ple"
    query_class = ExtractionTower


class SharedBottomWide(SharedBottom):
    """`SharedBottom` with a vector of its own per objective."""

    name = trained_as = "shared_bottom_wide"
    wide = True


class MmoeWide(Mmoe):
    """`Mmoe` with a vector of its own per objective."""

    name = trained_as = "mmoe_wide"
    wide = True


class PleWide(Ple):
    """`Ple` with a vector of its own per objective."""

    name = trained_as = "ple_wide"
    wide = True
