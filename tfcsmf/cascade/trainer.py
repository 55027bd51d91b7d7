"""The stage loop: pre-train, prune (CPP), recover (AR), freeze, next objective."""

from __future__ import annotations

import errno
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfcsmf.cascade import capacity
from tfcsmf.cascade.checkpoints import Checkpoint, CheckpointStore, SavePace
from tfcsmf.cascade.dimensions import measure_dimensions
from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.frozen import FrozenScores
from tfcsmf.cascade.histories import (
    close_histories,
    lend_histories,
    open_histories,
)
from tfcsmf.cascade.model import CSMF, history_stages
from tfcsmf.cascade.progress import Progress
from tfcsmf.cascade.pruning import make_criterion
from tfcsmf.cascade.samplers import make_sampler, stage_negatives
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.cascade.training_state import TrainingState
from tfcsmf.cascade.workers import Workers
from tfcsmf.config import ClusterConfig, Config
from tfcsmf.data.batch_rows import Batch
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import joint_lessons, with_later_events
from tfcsmf.data.prepare import check_catalogue
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import DataError
from tfcsmf.evaluation.protocols import mean_recall
from tfcsmf.evaluation.ranker import VectorRanker
from tfcsmf.negatives.clusters import (
    CLUSTERS,
    SemanticClusters,
    cluster_key,
    clusters_of_run,
)
from tfcsmf.negatives.sampler import NegativeSampler

_REPORT_EVERY = 50  # steps between looks at the loss, which wait for the device


class CascadeTrainer:
    """Trains a model through the stages of a cascade, resumably.

    Args:
      config: stage settings are `config.stage(objective)`.
      log: the prepared log.
      model: trained in place.
      directory: the run's folder; `checkpoints/` and `logs/` are written into it. Each
        worker has its own, and no checkpoints but the chief's are written.
      first_stage: where to start; > 0 appends objectives to a trained model.
      show_progress: draw progress bars on stderr.
      workers: train it together; `None` for a process on its own.

    Example:
      >>> trainer = CascadeTrainer(config, log, model, "out")  # doctest: +SKIP
      >>> progress = trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        config: Config,
        log: PreparedLog,
        model: CSMF,
        directory: str | Path,
        first_stage: int = 0,
        show_progress: bool = True,
        workers: Workers | None = None,
    ) -> None:
        self.config = config
        if config.cascade.later_weight:
            log = with_later_events(log)
        self.log = log
        self.model = model
        self.show_progress = show_progress
        self.workers = workers
        self._history_stages = history_stages(config, log)
        self.encoder = Encoder(
            model, log, config.data.history_length, self._history_stages
        )
        self.store = CheckpointStore(
            Path(directory) / "checkpoints", config.cascade.keep_checkpoints
        )
        self.pace = SavePace(config.cascade.checkpoint_every)
        self.frozen = FrozenScores(self.encoder)
        self.state = TrainingState(model, self.frozen, first_stage)
        self._clusters: SemanticClusters | None = None
        self._logs = Path(directory) / "logs"
        self._scalars = tf.summary.create_file_writer(str(self._logs))

    @property
    def progress(self) -> Progress:
        """Where training is, with the reports and curves so far."""
        return self.state.progress

    @property
    def num_stages(self) -> int:
        """Number of objectives."""
        return len(self.log.objectives)

    @property
    def clusters(self) -> SemanticClusters | None:
        """Semantic clusters of the catalogue, kept beside the checkpoints.

        Made when they are first asked for; `None` if no stage samples by them.
        """
        names = map(self.config.sampler, self.log.objectives)
        if self._clusters is None and "esans" in names:
            self._clusters = clusters_of_run(
                self.log, self._cluster_settings, self.config.seed, self._cluster_folder
            )
        return self._clusters

    @property
    def _cluster_settings(self) -> ClusterConfig:
        return self.config.loss.negatives.esans.clusters

    @property
    def _cluster_folder(self) -> Path:
        return self.store.directory / CLUSTERS

    def train(self, stages: int | None = None) -> Progress:
        """Runs the stages that are left; returns the reports and curves.

        Args:
          stages: stop once so many are finished; None for all.
        """
        last = self.num_stages if stages is None else stages
        if self.workers is not None:
            self._follow_chief(self.workers)
        while self.progress.stage < last:
            self._run_stage()
        return self.progress

    def _follow_chief(self, workers: Workers) -> None:
        """Gives all workers the chief's position, which may be that of a checkpoint."""
        state, arrays = self.state.contents(self.state.slots)
        state, arrays = workers.arrays_from_chief(state, arrays)
        if not workers.is_chief:
            self.state.restore(Checkpoint(state, arrays, self.store.directory))
        if "esans" in map(self.config.sampler, self.log.objectives):
            if workers.is_chief:
                _ = self.clusters  # made, or read, before they are sent
            workers.files_from_chief(self._cluster_folder)

    def _agree(self, workers: Workers) -> None:
        """Gives all workers the chief's arrays where they have come to differ.

        Sums are the same on all of them, but machines of different kinds may round
        what each computes for itself differently.
        """
        _, arrays = self.state.contents({})
        if not workers.agree([arrays[name] for name in sorted(arrays)]):
            self.state.take(workers.arrays_from_chief({}, arrays)[1])

    # One stage, top to bottom.

    def _run_stage(self) -> None:
        progress, stage = self.progress, self.progress.stage
        objective = self.log.objectives[stage]
        settings = self.config.stage(objective)
        joint = progress.phase == "train" and self._teaches_later(stage)
        batches = self._batches(objective, joint)
        self._open(stage, batches)
        step = StageStep(self.model, settings, batches.element_spec, self.workers)
        if progress.phase == "train":
            step.start("train", stage, self.state.slots)
            self._run_phase(step, batches, 1.0, settings.epochs, settings.patience)
            progress.epochs = progress.step // batches.steps_per_epoch()
            progress.best_epoch = progress.best_step // batches.steps_per_epoch()
            if joint:
                close_histories(self.model.query_tower, self._history_stages, keep=True)
            last = stage == self.num_stages - 1 and not self.config.cascade.reserve
            if last:
                capacity.take_over(self.model, stage)
                names = (p.whole for p in self.model.owned_parameters)
                progress.freed_share = dict.fromkeys(names, 0.0)
            else:
                self._prune(step, batches, stage)
            recovery = settings.recovery_epochs and not last
            if recovery:
                progress.begin_phase("recovery")
                self.state.begin_phase()
                self._evaluate(stage)  # what pruning cost, and the one to beat
                self._save(None)  # recovery starts with fresh slots
        if progress.phase == "recovery":
            if joint:
                batches = self._batches(objective)
                self._open(stage, batches)
                spec = batches.element_spec
                step = StageStep(self.model, settings, spec, self.workers)
            step.start("recovery", stage, self.state.slots)
            self._run_phase(
                step, batches, settings.recovery_share, settings.recovery_epochs, 0
            )
        self._close(objective, batches)
        self._save(None)

    def _batches(self, objective: str, joint: bool = False) -> StageBatches:
        """Returns a stage's batches; with `joint`, later objectives' rows in them."""
        loss, data = self.config.loss, self.config.data
        stage = self.log.objectives.index(objective)
        check_catalogue(self.log.items.size)
        return self._make_batches(
            objective,
            BatchSettings(
                self.config.stage(objective).batch_size,
                loss.uniform_negatives,
                loss.hard_negatives,
                data.history_length,
                self.config.seed,
                tuple(
                    event
                    for event, first in self._history_stages.items()
                    if first <= stage or joint
                ),
                data.target_share,
                data.visible_share,
                loss.whole_catalogue,
                self._sampler(objective),
                data.rows_per_user,
            ),
            joint,
        )

    def _sampler(self, objective: str) -> NegativeSampler | None:
        name = self.config.sampler(objective)
        return make_sampler(name, self.log, objective, self.config, self.clusters)

    def _make_batches(
        self, objective: str, settings: BatchSettings, joint: bool
    ) -> StageBatches:
        if not joint:
            return StageBatches(self.log, objective, settings)
        lessons = joint_lessons(self.log, self._lesson_weights)
        return StageBatches(
            lessons.log,
            objective,
            settings,
            lessons.labels,
            self.log.objectives,
            self._history_stages,
        )

    @property
    def _lesson_weights(self) -> list[float]:
        """Weights of a pair in the first stage, by objective."""
        return [1.0] + [self.config.cascade.later_weight] * (self.num_stages - 1)

    def _teaches_later(self, stage: int) -> bool:
        """Returns whether rows of later objectives are trained beside the stage's."""
        return stage == 0 < self.num_stages - 1 and self.config.cascade.later_weight > 0

    def _open(self, stage: int, batches: StageBatches) -> None:
        """Points the model at a stage; reopens freed capacity when it begins."""
        progress, model = self.progress, self.model
        model.stage = stage
        model.frozen_candidates = (
            tf.constant(self.encoder.candidates(stage)) if stage else None
        )
        model.sampling_probability = (
            tf.constant(batches.probability)
            if self.config.loss.correct_sampling and not batches.has_whole_catalogue
            else None
        )
        model.negatives = stage_negatives(self.config, batches, model.dimension)
        beginning = progress.phase == "train" and progress.step == 0
        if beginning and self._teaches_later(stage):
            lend_histories(model.query_tower, self._history_stages, self.config.seed)
        if stage > 0 and beginning:
            previous = self.config.stage(self.log.objectives[stage - 1])
            before, seed = self.state.before_pruning, self.config.seed + stage
            capacity.reopen(model, previous.freed, before, seed)
            open_histories(model.query_tower, self._history_stages, stage, seed)
            self.state.before_pruning = {}  # a table's size in every checkpoint

    def _run_phase(
        self,
        step: StageStep,
        batches: StageBatches,
        share: float,
        epochs: int,
        patience: int,
    ) -> None:
        progress = self.progress
        if self.workers is not None:
            self._agree(self.workers)
        per_epoch = batches.steps_per_epoch(share)
        total = per_epoch * epochs
        # Training and recovery draw from different generators.
        phase = 0 if progress.phase == "train" else 1
        stream = iter(batches.dataset(share, phase, progress.step, total))
        while progress.step < total and not progress.phase_over:
            epoch_end = (progress.step // per_epoch + 1) * per_epoch
            self._run_epoch(step, stream, batches.batch_size, epoch_end)
            self._end_epoch(step, per_epoch, total, patience)
        self.state.load_best()

    def _run_epoch(
        self,
        step: StageStep,
        stream: Iterator[Batch],
        batch_size: int,
        epoch_end: int,
    ) -> None:
        progress = self.progress
        name = self.log.objectives[progress.stage]
        bar = tqdm(
            total=(epoch_end - progress.step) * batch_size,
            desc=f"{name} {progress.phase} epoch {len(progress.curve['loss']) + 1}",
            unit="row",
            unit_scale=True,
            disable=not self.show_progress,
            mininterval=1.0,
        )
        pending: list[tf.Tensor] = []
        positives = 0
        began = time.perf_counter()

        def settle() -> None:
            nonlocal began, positives
            # In order and in double precision, so that a resumed run adds the same.
            for loss in pending:
                progress.losses += float(loss)
            if pending:
                last = float(pending[-1])
                if not np.isfinite(last):
                    raise DataError(
                        f"The loss of stage {name!r} should stay finite. Received: "
                        f"{last} at step {progress.step}. Lower "
                        "cascade.stage.learning_rate or embedding_learning_rate."
                    )
                bar.set_postfix(loss=f"{last:.3f}", refresh=False)
            bar.update(len(pending) * batch_size)
            progress.examples_seen += positives
            progress.seconds += time.perf_counter() - began
            pending.clear()
            positives = 0
            began = time.perf_counter()

        for batch in itertools.islice(stream, epoch_end - progress.step):
            pending.append(step(batch))
            positives += int(batch["positives"].shape[0])
            progress.step += 1
            save = progress.step < epoch_end and self.pace.due(progress.step)
            if save or len(pending) == _REPORT_EVERY:
                settle()
            if save:
                self._save(step)
                began = time.perf_counter()
        settle()
        bar.close()

    def _end_epoch(
        self, step: StageStep, per_epoch: int, total: int, patience: int
    ) -> None:
        progress = self.progress
        loss = progress.losses / per_epoch
        progress.losses = 0.0
        progress.curve["step"].append(progress.step)
        progress.curve["loss"].append(loss)
        weight = self.config.stage(self.log.objectives[progress.stage]).averaging
        if weight < 1.0:
            # The mean of all epochs until there are enough of them.
            self.state.update_average(max(weight, 1 / len(progress.curve["loss"])))
        value = self._evaluate(progress.stage)
        if patience and progress.bad_evaluations >= patience:
            progress.phase_over = True
        self._write_scalars(loss, value)
        if self.pace.affordable():
            over = progress.phase_over or progress.step >= total
            self._save(None if over else step)

    def _evaluate(self, stage: int) -> float | None:
        """Validates the stage in training and remembers the best parameters."""
        with self.state.averaged():
            value = self.validate(stage)
        if self.progress.record_validation(value):
            self.state.keep_best()
        if self.show_progress and value is not None:
            name = self.log.objectives[stage]
            k = self.config.evaluation.validation_k
            tqdm.write(
                f"  {name} {self.progress.phase} step {self.progress.step}: "
                f"validation recall@{k} {value:.4f} (best {self.progress.best:.4f})",
                file=sys.stderr,
            )
        return value

    def validate(self, stage: int) -> float | None:
        """Returns validation recall (unseen) of the stage in training.

        All workers act on the value that the chief measures.
        """
        if self.workers is not None:
            return self.workers.value_from_chief(lambda: self._validate(stage))
        return self._validate(stage)

    def _validate(self, stage: int) -> float | None:
        objective = self.log.objectives[stage]
        if not len(self.log.validation[objective].users):
            return None
        candidates = self.encoder.training_candidates(stage)
        if self.model.frozen_candidates is not None:
            candidates = candidates + self.model.frozen_candidates.numpy()
        return self._recall(objective, stage, candidates)

    def _recall(
        self, objective: str, stage: int, candidates: np.ndarray
    ) -> float | None:
        """Returns validation recall of u^(stage) against candidate vectors."""
        ranker = VectorRanker(
            lambda _, part: self.encoder.queries(
                part, self.log.train_histories, stage, training=True
            ),
            candidates,
            self.config.evaluation.query_batch,
            self.config.evaluation.candidate_block,
        )
        k = self.config.evaluation.validation_k
        return mean_recall(ranker, self.log.validation[objective], objective, k)

    def _prune(self, step: StageStep, batches: StageBatches, stage: int) -> None:
        cascade = self.config.cascade
        objective = self.log.objectives[stage]
        settings = self.config.stage(objective)
        importance = None
        if cascade.criterion == "fisher":
            importance = step.fisher(batches.dataset(1.0, 2, 0, 50))
        dimensions = None
        if cascade.dimension_information != "weights" and importance is None:
            dimensions = measure_dimensions(
                self.encoder,
                self.log.train[objective],
                stage,
                turn=cascade.dimension_information == "principal",
            )
        if settings.freed == "keep":
            self.state.before_pruning = capacity.snapshot(self.model)
        shares = cascade.freed_share
        if cascade.criterion == "cpp":
            table, output = settings.embedding_tau, settings.output_tau
            chosen = capacity.Shares(
                settings.tau,
                settings.tau if table is None else table,
                settings.tau if output is None else output,
            )
        else:
            chosen = capacity.Shares(shares, shares, shares)
        left = self.num_stages - 1 - stage + int(cascade.reserve)
        self.progress.freed_share = capacity.prune(
            self.model,
            stage,
            make_criterion(cascade.criterion, self.config.seed + stage),
            chosen,
            self.config.towers.granularity,
            left,
            importance,
            dimensions,
        )

    def _close(self, objective: str, batches: StageBatches) -> None:
        """Freezes the stage and reports it."""
        progress, stage = self.progress, self.progress.stage
        self.frozen.remember(stage)
        rate = progress.examples_seen / max(progress.seconds, 1e-9)
        k = self.config.evaluation.validation_k
        training = progress.phases[0]["validation"]
        progress.finished.append(
            {
                "name": objective,
                "examples": batches.num_examples,
                "examples_seen": progress.examples_seen,
                "seconds": round(progress.seconds, 3),
                "examples_per_second": round(rate, 1),
                "freed_share": progress.freed_share,
                "epochs": progress.epochs,
                "best_epoch": progress.best_epoch,
                "best_validation": {
                    f"recall@{k}": max(training, default=None),
                    f"recall@{k}_frozen": self.validate(stage),
                },
            }
        )
        progress.curves[objective] = {"phases": progress.stage_curves()}
        progress.begin_stage(stage + 1)
        self.state.begin_phase()

    def _write_scalars(self, loss: float, value: float | None) -> None:
        name = self.log.objectives[self.progress.stage]
        try:
            with self._scalars.as_default(step=self.progress.step):  # flushes
                prefix = f"{self.progress.stage}_{name}/{self.progress.phase}"
                tf.summary.scalar(f"{prefix}/loss", loss)
                if value is not None:
                    tf.summary.scalar(f"{prefix}/validation_recall", value)
        except tf.errors.ResourceExhaustedError as error:
            message = "No space left on device"
            raise OSError(errno.ENOSPC, message, str(self._logs)) from error

    # Checkpoints.

    def _save(self, step: StageStep | None) -> None:
        """Writes a checkpoint; without a step the next phase has fresh slots."""
        if self.workers is not None and not self.workers.is_chief:
            return
        with self.pace.saving():
            self.store.save(*self.state.contents(step.state() if step else {}))

    def inherit(self, base: CheckpointStore) -> None:
        """Takes over the reports of a finished run that is being extended."""
        checkpoint = base.latest()
        if checkpoint is not None:
            self.state.inherit(checkpoint)
        if (base.directory / CLUSTERS).is_dir():
            # Items met before keep their codes.
            key = cluster_key(self.log, self._cluster_settings, self.config.seed)
            before = SemanticClusters.load(base.directory / CLUSTERS)
            before.refreshed(self.log, key).save(self._cluster_folder)

    def resume(self) -> bool:
        """Loads the newest intact checkpoint; returns whether there is one."""
        checkpoint = self.store.latest()
        if checkpoint is None:
            return False
        self.state.restore(checkpoint)
        return True
