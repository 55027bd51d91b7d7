"""Trains a sequence model on its own: epochs, early stopping, the best is kept."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfcsmf.cascade.progress import Progress
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, StageConfig
from tfcsmf.data.prepared import EvaluationSet, PreparedLog
from tfcsmf.data.sequence_batches import SequenceBatches, SequenceSettings
from tfcsmf.errors import DataError
from tfcsmf.evaluation.protocols import mean_recall
from tfcsmf.evaluation.ranker import VectorRanker
from tfcsmf.heterrec.build import build_sequence_model
from tfcsmf.heterrec.encoding import SequenceEncoder
from tfcsmf.heterrec.settings import uses_features

_REPORT_EVERY = 20  # steps between two looks at the loss


class SequenceTrainer:
    """Builds and trains the sequence model of a configuration.

    One pass over a sequence trains all of its places. Validation asks for the
    validation pairs of all objectives after what the user had done before them; the
    mean of their recall decides when to stop and what to keep.

    Args:
      config: `sequence`, `evaluation` and `seed` are used.
      log: the prepared log.
      show_progress: draw progress bars on stderr.

    Attributes:
      model: the model.
      encoder: gives its vectors.
      progress: where training is.
    """

    def __init__(
        self, config: Config, log: PreparedLog, show_progress: bool = True
    ) -> None:
        self.config = config
        self.log = log
        self.show_progress = show_progress
        settings = config.sequence
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
        )
        self.model = build_sequence_model(config, log, self.batches.sequences)
        self.encoder = SequenceEncoder(self.model, log, settings.length)
        self.progress = Progress()
        self.progress.begin_stage(0)
        self._best: list[np.ndarray] = []

    def train(self) -> dict[str, Any]:
        """Trains to the end; returns the report of `metrics.json`."""
        settings, progress = self.config.sequence.training, self.progress
        step = self._step()
        for epoch in range(settings.epochs):
            self._run_epoch(step, epoch)
            progress.epochs = epoch + 1
            if self._evaluate():
                progress.best_epoch = progress.epochs
            if settings.patience and progress.bad_evaluations >= settings.patience:
                break
        for variable, value in zip(self._variables(), self._best, strict=True):
            variable.assign(value)
        k = self.config.evaluation.validation_k
        rate = progress.examples_seen / max(progress.seconds, 1e-9)
        return {
            "name": " + ".join(self.log.objectives),
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
        step.start("train", 0)
        return step

    def _variables(self) -> list[tf.Variable]:
        return [parameter.variable for parameter in self.model.owned_parameters]

    def _run_epoch(self, step: StageStep, epoch: int) -> None:
        progress = self.progress
        pending: list[tf.Tensor] = []
        losses: list[float] = []
        bar = tqdm(
            total=self.batches.num_examples,
            desc=f"epoch {epoch + 1}",
            unit="ex",
            unit_scale=True,
            disable=not self.show_progress,
            mininterval=1.0,
        )

        def settle() -> None:
            # Waits for the steps; asking each one would keep the next from starting.
            losses.extend(float(loss) for loss in pending)
            if pending and not np.isfinite(losses[-1]):
                raise DataError(
                    f"The loss should stay finite. Received: {losses[-1]} at step "
                    f"{progress.step}. Lower sequence.training.learning_rate."
                )
            pending.clear()

        began = time.perf_counter()
        for batch in self.batches.dataset(epoch):
            pending.append(step(batch))
            progress.step += 1
            lengths = batch["lengths"].numpy()
            bar.update(int(lengths.sum()) - len(lengths))
            if len(pending) == _REPORT_EVERY:
                settle()
        settle()
        bar.close()
        progress.seconds += time.perf_counter() - began
        progress.examples_seen += self.batches.num_examples
        progress.curve["step"].append(progress.step)
        progress.curve["loss"].append(float(np.mean(losses)))

    def _evaluate(self) -> bool:
        """Validates, and keeps the parameters if they are the best so far."""
        value = self.validate()
        better = self.progress.record_validation(value)
        if better:
            self._best = [variable.numpy() for variable in self._variables()]
        if self.show_progress and value is not None:
            k = self.config.evaluation.validation_k
            tqdm.write(
                f"  epoch {self.progress.epochs}: validation recall@{k} {value:.4f} "
                f"(best {self.progress.best:.4f})",
                file=sys.stderr,
            )
        return better

    def validate(self) -> float | None:
        """Returns the mean validation recall (unseen) over the objectives."""
        parts = {
            name: part for name, part in self.log.validation.items() if len(part.users)
        }
        if not parts:
            return None
        ranker = self.ranker("train")
        k = self.config.evaluation.validation_k
        values = [mean_recall(ranker, part, name, k) for name, part in parts.items()]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None
