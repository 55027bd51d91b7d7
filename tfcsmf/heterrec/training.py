"""Trains a sequence model on its own: epochs, early stopping, the best is kept.

Batches are pure functions of (seed, epoch, number), so the position in `Progress` and
the arrays of a checkpoint are all that a resumed run needs:

    model/<parameter>     values
    best/<parameter>      best values, left out while they are the latest
    average/<parameter>   average over epochs, if there is one
    optimizer/...         step and slots; the last checkpoint has the best values alone
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfcsmf.cascade.checkpoints import CheckpointStore, SavePace
from tfcsmf.cascade.progress import Progress
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, StageConfig
from tfcsmf.data.prepared import EvaluationSet, PreparedLog
from tfcsmf.data.sequence_batches import SequenceBatches, SequenceSettings
from tfcsmf.errors import CheckpointError, DataError
from tfcsmf.evaluation.protocols import mean_recall
from tfcsmf.evaluation.ranker import VectorRanker
from tfcsmf.heterrec.averaging import epoch_average
from tfcsmf.heterrec.build import build_sequence_model
from tfcsmf.heterrec.encoding import SequenceEncoder
from tfcsmf.heterrec.settings import uses_features

_REPORT_EVERY = 20  # steps between two looks at the loss


class SequenceTrainer:
    """Builds and trains the sequence model of a configuration.

    One pass over a sequence trains all of its places. Validation asks for the
    validation pairs of all objectives after what the user had done before them; the
    mean of their recall decides when to stop and what to keep. With
    `sequence.training.refit` that is only how many epochs the model is then trained
    anew, on all that is known before the test.

    Args:
      config: `sequence`, `evaluation` and `seed` are used.
      log: the prepared log.
      show_progress: draw progress bars on stderr.
      directory: of the run, for its `checkpoints/`; without it none are written.

    Attributes:
      model: the model.
      encoder: gives its vectors.
      progress: where training is; refitting is its stage 1.
    """

    def __init__(
        self,
        config: Config,
        log: PreparedLog,
        show_progress: bool = True,
        directory: str | Path | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.show_progress = show_progress
        self.progress = Progress()
        self.progress.begin_stage(0)
        self._build()
        self.store = None
        if directory is not None:
            keep = config.cascade.keep_checkpoints
            self.store = CheckpointStore(Path(directory) / "checkpoints", keep)
        self.pace = SavePace(config.cascade.checkpoint_every)
        self._within = 0  # batches of the current epoch so far
        self._best: dict[str, np.ndarray] = {}
        self._average: dict[str, np.ndarray] = {}
        self._slots: dict[str, np.ndarray] = {}

    def _build(self) -> None:
        """Makes the batches of the stage, and an untrained model."""
        config, log, settings = self.config, self.log, self.config.sequence
        whole = log.items.trained <= settings.whole_catalogue
        self.batches = SequenceBatches(
            log,
            SequenceSettings(
                settings.length,
                settings.training.batch_events,
                None if whole else settings.uniform_negatives,
                config.seed,
            ),
            None if uses_features(settings) else (),
            log.test_histories if self.refitting else log.train_histories,
        )
        self.model = build_sequence_model(config, log, self.batches.sequences)
        self.encoder = SequenceEncoder(self.model, log, settings.length)

    @property
    def refitting(self) -> bool:
        """Whether the validation events are trained on."""
        return self.progress.stage == 1

    def train(self) -> list[dict[str, Any]]:
        """Trains to the end; returns the stages of `metrics.json`.

        There is one, and with `sequence.training.refit` one more.
        """
        refit = self.config.sequence.training.refit and not self.refitting
        if not refit or self._validation():
            self._train_stage()
        if refit:
            self.progress.begin_stage(1)
            self._build()
            self._best, self._average = {}, {}
            self._train_stage()
        return self.progress.finished

    def _train_stage(self) -> None:
        """Trains the stage to its end, and notes its report."""
        progress, settings = self.progress, self.config.sequence.training
        chosen = [stage["best_epoch"] for stage in progress.finished]
        epochs = chosen[0] if self.refitting and chosen else settings.epochs
        step = self._step()
        while not progress.phase_over:
            self._run_epoch(step, progress.epochs)
            progress.epochs += 1
            if self._evaluate():
                progress.best_epoch = progress.epochs
            waited = progress.bad_evaluations >= settings.patience > 0
            progress.phase_over = waited or progress.epochs >= epochs
            if self.pace.affordable():
                self._save(step)
        self._assign(self._best)
        report = self._report()
        if report["name"] not in progress.curves:
            progress.curves[report["name"]] = {"phases": progress.stage_curves()}
            progress.finished.append(report)
        self._save(None)

    def _report(self) -> dict[str, Any]:
        """Returns what `metrics.json` says of the stage."""
        progress = self.progress
        name = " + ".join(self.log.objectives)
        k = self.config.evaluation.validation_k
        rate = progress.examples_seen / max(progress.seconds, 1e-9)
        return {
            "name": f"{name}, refit" if self.refitting else name,
            "examples": self.batches.num_examples,
            "examples_seen": progress.examples_seen,
            "seconds": round(progress.seconds, 3),
            "examples_per_second": round(rate, 1),
            "epochs": progress.epochs,
            "best_epoch": progress.best_epoch,
            "best_validation": {f"recall@{k}": progress.best},
        }

    def ranker(self, histories: str = "test") -> VectorRanker:
        """Returns what ranks the catalogue with the current parameters.

        Args:
          histories: "test" or "train": what queries' histories are taken from.
        """
        lists = (
            self.log.test_histories if histories == "test" else self.log.train_histories
        )

        def queries(_: str, part: EvaluationSet) -> np.ndarray:
            return self.encoder.queries(part, lists)

        return VectorRanker(
            queries,
            self.encoder.candidates(),
            self.config.evaluation.query_batch,
            self.config.evaluation.candidate_block,
        )

    def _step(self) -> StageStep:
        settings = self.config.sequence.training
        stage = StageConfig(
            learning_rate=settings.learning_rate,
            embedding_learning_rate=settings.embedding_learning_rate,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
        )
        step = StageStep(self.model, stage, self.batches.element_spec)
        step.start("train", 0, self._slots)
        self._slots = {}
        return step

    def _values(self) -> dict[str, np.ndarray]:
        """Returns copies of all parameters by name."""
        return {p.name: p.variable.numpy() for p in self.model.owned_parameters}

    def _assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets parameters by name.

        Raises:
          CheckpointError: if names or shapes are not those of the model.
        """
        for parameter in self.model.owned_parameters:
            value = values.get(parameter.name)
            shape = tuple(parameter.variable.shape)
            if value is None or value.shape != shape:
                raise CheckpointError(
                    f"The checkpoint should hold {parameter.name!r} of shape {shape}. "
                    f"Received: {'nothing' if value is None else value.shape}. It "
                    "belongs to another configuration or log."
                )
            parameter.variable.assign(value)

    def _save(self, step: StageStep | None) -> None:
        """Writes a checkpoint; without a step the one of the best parameters."""
        if self.store is None:
            return
        groups = {"model": self._values()}
        if step is not None:
            groups["optimizer"] = step.state()
            groups["average"] = self._average
            # Validation ends an epoch, and nothing moves before the next.
            if self._average or self.progress.best_step != self.progress.step:
                groups["best"] = self._best
        arrays = {
            f"{group}/{name}": value
            for group, values in groups.items()
            for name, value in values.items()
        }
        state = {"progress": self.progress.to_dict(), "within": self._within}
        with self.pace.saving():
            self.store.save(state, arrays)

    def resume(self) -> bool:
        """Loads the newest intact checkpoint; returns whether there is one.

        Raises:
          CheckpointError: if it belongs to another configuration or log.
        """
        checkpoint = None if self.store is None else self.store.latest()
        if checkpoint is None:
            return False
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, value in checkpoint.arrays.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = value
        self.progress = Progress(**checkpoint.state["progress"])
        if self.refitting:
            self._build()
        self._assign(groups["model"])
        self._within = checkpoint.state["within"]
        self._average = groups.get("average", {})
        self._best = groups.get("best", {})
        if self.progress.epochs and not self._best:
            self._best = self._values()
        self._slots = groups.get("optimizer", {})
        return True

    def _run_epoch(self, step: StageStep, epoch: int) -> None:
        progress = self.progress
        pending: list[tf.Tensor] = []
        bar = tqdm(
            total=self.batches.num_examples,
            desc=f"epoch {epoch + 1}",
            unit="ex",
            unit_scale=True,
            disable=not self.show_progress,
            mininterval=1.0,
        )
        began = time.perf_counter()

        def settle() -> None:
            # Waits for the steps; asking each one would keep the next from starting.
            nonlocal began
            for loss in pending:
                progress.losses += float(loss)
            if not np.isfinite(progress.losses):
                raise DataError(
                    f"The loss should stay finite. Received: {progress.losses} up to "
                    f"step {progress.step}. Lower sequence.training.learning_rate."
                )
            pending.clear()
            now = time.perf_counter()
            progress.seconds, began = progress.seconds + now - began, now

        for batch in self.batches.dataset(epoch, self._within):
            pending.append(step(batch))
            progress.step += 1
            self._within += 1
            lengths = batch["lengths"].numpy()
            bar.update(int(lengths.sum()) - len(lengths))
            save = self.store is not None and self.pace.due(progress.step)
            if save or len(pending) == _REPORT_EVERY:
                settle()
            if save:
                self._save(step)
                began = time.perf_counter()
        settle()
        bar.close()
        progress.examples_seen += self.batches.num_examples
        progress.curve["step"].append(progress.step)
        progress.curve["loss"].append(progress.losses / self._within)
        progress.losses, self._within = 0.0, 0

    def _evaluate(self) -> bool:
        """Validates, and keeps the parameters if they are the best so far."""
        latest = self._values()
        memory = self.config.sequence.training.averaging
        kept = latest
        if memory:
            kept = epoch_average(self._average, latest, memory, self.progress.epochs)
            self._average = kept
            self._assign(kept)
        value = self.validate()
        better = self.progress.record_validation(value)
        if better:
            self._best = kept
        if memory:
            self._assign(latest)
        if self.show_progress and value is not None:
            k = self.config.evaluation.validation_k
            tqdm.write(
                f"  epoch {self.progress.epochs}: validation recall@{k} {value:.4f} "
                f"(best {self.progress.best:.4f})",
                file=sys.stderr,
            )
        return better

    def validate(self) -> float | None:
        """Returns the mean validation recall (unseen) over the objectives.

        `None` without validation pairs, or when they were trained on.
        """
        parts = self._validation()
        if self.refitting or not parts:
            return None
        ranker = self.ranker("train")
        k = self.config.evaluation.validation_k
        values = [mean_recall(ranker, part, name, k) for name, part in parts.items()]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def _validation(self) -> dict[str, EvaluationSet]:
        """Returns the validation queries by objective, if there are any."""
        parts = self.log.validation
        return {name: part for name, part in parts.items() if len(part.users)}
