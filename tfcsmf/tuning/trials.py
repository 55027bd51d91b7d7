"""One trial: the stages of the cascade with settings of its own, or as far as it pays.

result of the trial?  -> nothing is repeated
checkpoint of it?     -> continue there
stages of another?    -> start after the last one that is the same
after every stage: validation of its objective -> worse than most? -> stop
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.run_data import RunData
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.errors import TfcsmfError
from tfcsmf.files import write_atomic
from tfcsmf.tuning.scores import Scoring
from tfcsmf.tuning.space import Space
from tfcsmf.tuning.stage_cache import StageCache, stage_key

_LOG = logging.getLogger(__name__)

REFERENCE = "reference"  # the configuration with nothing changed
Status = Literal["running", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """What is known of a trial, JSON-able.

    Attributes:
      name: its number, or `reference`.
      settings: values by configuration path.
      epochs: bound on the epochs of every stage (hyperband), if any.
      status: `pruned` trials were stopped because most others were better.
      stages: one per finished stage: `name`, `value` (validation metric of the
        frozen stage), `seconds` of training, and `reused` where another trial
        trained it.
      score: of the stages there are.
      error: why it failed.
    """

    name: str
    settings: dict[str, Any]
    epochs: int | None = None
    status: Status = "running"
    stages: list[dict[str, Any]] = field(default_factory=list)
    score: float | None = None
    error: str | None = None

    @property
    def values(self) -> dict[str, float]:
        """Validation metric by objective, of the stages there are."""
        return {stage["name"]: stage["value"] for stage in self.stages}

    def seconds(self, reused: bool) -> float:
        """Returns training seconds of the stages that were, or were not, reused."""
        return sum(s["seconds"] for s in self.stages if s["reused"] == reused)


class TrialRunner:
    """Runs trials in a folder: `<name>/trial.json`, and checkpoints while they run.

    Args:
      config: what trials vary.
      logs: returns what a configuration trains on and its fingerprint.
      folder: of all trials.
      cache: of finished stages.
      prune_after: a trial stops early once so many others have come as far and their
        median is better; 0 never stops one.
      show_progress: draw progress bars on stderr.

    Attributes:
      scoring: how values become a score; None until the reference has run.
    """

    def __init__(
        self,
        config: Config,
        logs: Callable[[Config], tuple[RunData, str]],
        folder: str | Path,
        cache: StageCache,
        prune_after: int,
        show_progress: bool = False,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.cache = cache
        self.prune_after = prune_after
        self.show_progress = show_progress
        self.scoring: Scoring | None = None
        self._logs = logs

    def run(
        self, name: str, settings: Mapping[str, Any], epochs: int | None = None
    ) -> Trial:
        """Runs a trial, or what is left of it; returns what came out.

        What is wrong with the settings is told by the trial, not raised.
        """
        with RunFolder(self.folder / name).locked():
            trial = load_trial(self.folder / name)
            checkpoints = self.folder / name / "checkpoints"
            if trial and (trial.settings, trial.epochs) != (settings, epochs):
                shutil.rmtree(checkpoints, ignore_errors=True)
                trial = None
            trial = trial or Trial(name, dict(settings), epochs)
            if trial.status != "running":
                _LOG.info("Trial %s is %s already.", name, trial.status)
                return trial
            self._save(trial)
            try:
                self._train(trial, Space.configure(self.config, settings, epochs))
            except TfcsmfError as error:
                trial.status, trial.error = "failed", str(error)
            self._save(trial)
            shutil.rmtree(checkpoints, ignore_errors=True)
        return trial

    def trials(self) -> list[Trial]:
        """Returns all trials there are, the reference left out, as they began."""
        names = [path.parent.name for path in self.folder.glob("*/trial.json")]
        numbers = sorted((name for name in names if name != REFERENCE), key=int)
        found = (load_trial(self.folder / name) for name in numbers)
        return [trial for trial in found if trial is not None]

    def _train(self, trial: Trial, config: Config) -> None:
        try:
            self._train_stages(trial, config)
        finally:
            gc.collect()  # models hold themselves in circles

    def _train_stages(self, trial: Trial, config: Config) -> None:
        data, fingerprint = self._logs(config)
        last = len(data.log.objectives) - 1
        trainer = data.trainer(
            config,
            build_model(config, data.log),
            self.folder / trial.name,
            self.show_progress,
            None,
        )
        trainer.resume()
        keys = [stage_key(config, fingerprint, stage) for stage in range(last)]
        reused = self._reuse(trainer, keys) | {
            number for number, stage in enumerate(trial.stages) if stage["reused"]
        }
        while True:
            stage = trainer.progress.stage
            trial.stages = _reports(trainer, reused)
            trial.score = self.scoring.score(trial.values) if self.scoring else None
            if stage > last:
                trial.status = "finished"
                return
            self._save(trial)
            if stage and self._is_poor(trial):
                trial.status = "pruned"
                return
            trainer.train(stage + 1)
            if stage < last:
                self.cache.save(keys[stage], *trainer.state.contents({}))

    def _reuse(self, trainer: CascadeTrainer, keys: list[str]) -> set[int]:
        """Takes over the furthest stage another trial has finished alike."""
        begun = trainer.progress.stage
        for stage in reversed(range(begun, len(keys))):
            state = self.cache.load(keys[stage])
            if state is not None:
                trainer.state.restore(state)
                return set(range(begun, stage + 1))
        return set()

    def _is_poor(self, trial: Trial) -> bool:
        """Whether at least half of the others were better after as many stages."""
        if self.scoring is None or trial.score is None or not self.prune_after:
            return False
        names = list(trial.values)
        others = [
            self.scoring.score({name: other.values[name] for name in names})
            for other in self.trials()
            if other.name != trial.name and len(other.stages) >= len(names)
        ]
        scores = [score for score in others if score is not None]
        return len(scores) >= self.prune_after and (
            trial.score < statistics.median(scores)
        )

    def _save(self, trial: Trial) -> None:
        text = json.dumps(dataclasses.asdict(trial), indent=1, allow_nan=False)
        write_atomic(self.folder / trial.name / "trial.json", text + "\n")


def load_trial(folder: Path) -> Trial | None:
    """Returns the trial of a folder, None if there is none."""
    path = folder / "trial.json"
    if not path.is_file():
        return None
    return Trial(**json.loads(path.read_text(encoding="utf-8")))


def _reports(trainer: CascadeTrainer, reused: set[int]) -> list[dict[str, Any]]:
    name = f"recall@{trainer.config.evaluation.validation_k}_frozen"
    return [
        {
            "name": stage["name"],
            "value": float(stage["best_validation"][name]),
            "seconds": stage["seconds"],
            "epochs": stage["epochs"],
            "reused": number in reused,
        }
        for number, stage in enumerate(trainer.progress.finished)
    ]
