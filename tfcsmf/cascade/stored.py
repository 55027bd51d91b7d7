"""Training from a prepared folder, of any size."""

from __future__ import annotations

from pathlib import Path

from tfcsmf.cascade.model import CSMF
from tfcsmf.cascade.progress import Progress
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.workers import Workers
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.sharded.files import reading
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.stored_batches import StoredBatches


class StoredTrainer(CascadeTrainer):
    """Trains from the files of a prepared folder.

    Args:
      config: as for `CascadeTrainer`.
      folder: gives the batches.
      log: its sample; see `tfcsmf.cascade.run_data`.
      model: trained in place.
      directory: as for `CascadeTrainer`.
      show_progress: as for `CascadeTrainer`.
      workers: as for `CascadeTrainer`.
    """

    def __init__(
        self,
        config: Config,
        folder: PreparedFolder,
        log: PreparedLog,
        model: CSMF,
        directory: str | Path,
        show_progress: bool = True,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(
            config, log, model, directory, 0, show_progress, workers=workers
        )
        self.folder = folder

    def train(self, stages: int | None = None) -> Progress:
        """See `CascadeTrainer.train`.

        Raises:
          DataError: if a file turns out to be damaged.
        """
        with reading(self.folder.path):
            return super().train(stages)

    def _make_batches(
        self, objective: str, settings: BatchSettings, joint: bool
    ) -> StageBatches:
        if not joint:
            return StoredBatches(self.folder, objective, settings)
        return StoredBatches(
            self.folder,
            objective,
            settings,
            self._lesson_weights,
            self._history_stages,
        )
