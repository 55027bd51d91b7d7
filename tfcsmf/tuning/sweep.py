"""A sweep: the folder, the reference run, the search, and what came out of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.config import Config, read_yaml
from tfcsmf.errors import CheckpointError, ConfigError, TfcsmfError
from tfcsmf.files import write_atomic
from tfcsmf.tuning import parallel
from tfcsmf.tuning.logs import Logs, validation_queries
from tfcsmf.tuning.report import write_sweep
from tfcsmf.tuning.scores import (
    Scalarisation,
    Scoring,
    check_weights,
    hypervolume,
    pareto,
)
from tfcsmf.tuning.space import Space
from tfcsmf.tuning.stage_cache import StageCache
from tfcsmf.tuning.trials import REFERENCE, Trial, TrialRunner, load_trial
from tfcsmf.tuning.tuners import CascadeTuner, TunerName, make_oracle, search

_LOG = logging.getLogger(__name__)

_STATUS = "sweep"  # in config.yaml of the folder
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SweepSettings:
    """How to search.

    Attributes:
      tuner: `random`, `bayesian` or `hyperband` of keras-tuner.
      trials: how many at most, >= 1; the reference run is not one of them.
      scalarise: see `Scoring`.
      weights: by objective, >= 0; missing ones are 1. Used by `weights`.
      prune_after: see `TrialRunner`; hyperband has its own way and takes 0.
      cached_stages: finished stages kept for other trials; 0 reuses none.
    """

    tuner: TunerName = "random"
    trials: int = 20
    scalarise: Scalarisation = "weights"
    weights: Mapping[str, float] = field(default_factory=dict)
    prune_after: int = 5
    cached_stages: int = 16

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("prune_after", 0), ("cached_stages", 0)):
            value = getattr(self, name)
            if value < least:
                option = name.replace("_", "-")
                raise ConfigError(
                    f"--{option} should be at least {least}. Received: {value}."
                )
        if self.scalarise == "hypervolume" and self.weights:
            raise ConfigError(
                "--weights belong to --scalarise weights; a volume has none. Received: "
                f"{dict(self.weights)}. Leave one of the two out."
            )


def run_sweep(
    config: Config,
    output: str | Path,
    space: Space,
    settings: SweepSettings,
    resume: bool = False,
    show_progress: bool = True,
) -> dict[str, Any] | None:
    """Runs a sweep, or what is left of it; see `pipelines/sweep.py`.

    First the configuration as it is (the reference), then the trials. Only training
    and validation data are used: the logs that trials see have no test data. In
    `output`:

        config.yaml, sweep.yaml   the configuration, and what is searched how
        trials/<name>/trial.json  settings, status and values of a trial
        stages/<key>/             states after stages, shared by trials
        tuner/                    keras-tuner's state
        report/                   see `write_sweep`
        best.yaml                 the best configuration, for `run_cascade.py --config`

    Args:
      config: what is varied.
      output: the folder. Parallel workers share it.
      space: what is searched.
      settings: how.
      resume: continue an unfinished sweep, or a finished one with more trials.
      show_progress: draw progress bars on stderr.

    Returns:
      The contents of `report/sweep.json`; None for a parallel worker.

    Raises:
      TfcsmfError: for every mistake a user can mend.
    """
    sweep = _Sweep(config, Path(output), space, settings, show_progress)
    if parallel.role() == "worker":
        sweep.work()
        return None
    folder = RunFolder(output)
    with folder.locked():
        section = folder.run_section()
        if section and not resume:
            raise CheckpointError(
                f"{str(output)!r} holds a run already. Continue a sweep with --resume, "
                "choose another --output, or delete the folder."
            )
        if section and section["status"] != _STATUS:
            raise CheckpointError(
                "--output should be the folder of a sweep. Received: "
                f"{str(output)!r}, which holds another run. Choose another one."
            )
        if section:
            folder.check_same(config, None)
        sweep.check_same()
        sweep.prepare()
        folder.write_config(config, _STATUS, None, bool(section))
        sweep.write_settings()
        return sweep.run()


class _Sweep:
    def __init__(
        self,
        config: Config,
        output: Path,
        space: Space,
        settings: SweepSettings,
        show_progress: bool,
    ) -> None:
        if settings.tuner == "hyperband":
            settings = replace(settings, prune_after=0)
            _check_epochs_free(space)
        self.config, self.output, self.space = config, output, space
        self.settings = settings
        self.weights = check_weights(settings.weights, config.cascade.objectives)
        self._file = output / "sweep.yaml"
        self._logs = Logs(config)
        self.runner = TrialRunner(
            config,
            self._logs,
            output / "trials",
            StageCache(output / "stages", settings.cached_stages),
            settings.prune_after,
            show_progress,
        )
        # Refuses what it has to before anything is written or prepared.
        self._make_oracle()

    def prepare(self) -> None:
        """Prepares the log and checks that every objective can be validated."""
        data, _ = self._logs(self.config)
        for name, queries in validation_queries(data.log).items():
            if not queries:
                raise ConfigError(
                    "A sweep needs validation pairs of every objective. Received: none "
                    f"of {name!r}. Raise data.validation_share or "
                    "data.validation_users, or leave the objective out."
                )

    def check_same(self) -> None:
        """Refuses to continue another sweep than the one in the folder."""
        if not self._file.is_file():
            return
        before, now = read_yaml(str(self._file)), self._description()
        if self.settings.tuner != "hyperband":
            before["trials_asked"] = now["trials_asked"]  # more may be asked for
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            values = "\n".join(
                f"  {key}: {before.get(key)!r} before, {now[key]!r} now"
                for key in changed
            )
            raise CheckpointError(
                f"A sweep continues as it began. Received other values for "
                f"{str(self.output)!r}:\n{values}\nGive the same options, or choose "
                "another --output."
            )

    def write_settings(self) -> None:
        """Writes sweep.yaml; the log has to be the one of before."""
        path = self.output / "log.json"
        content = json.dumps({"fingerprint": self._logs(self.config)[1]}) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") != content:
            raise CheckpointError(
                "A sweep should continue on the log it began with. Received: another "
                f"one than that of {str(self.output)!r}. Restore it, or choose another "
                "--output."
            )
        write_atomic(path, content)
        text = yaml.safe_dump(self._description(), sort_keys=False)
        write_atomic(self._file, text)

    def run(self) -> dict[str, Any]:
        """Runs the reference and the search; writes the report."""
        reference = self.runner.run(REFERENCE, {})
        if reference.status != "finished":
            shutil.rmtree(self.runner.folder / REFERENCE)
            raise TfcsmfError(f"The configuration itself fails: {reference.error}")
        self.runner.scoring = self._scoring(reference)
        self._search()
        return self.report(reference)

    def work(self) -> None:
        """Runs trials that a chief hands out, once it has run the reference."""
        waiting = False
        while True:
            reference = load_trial(self.runner.folder / REFERENCE)
            if reference and reference.status == "finished" and self._file.is_file():
                break
            if not waiting:
                _LOG.info("Waiting for the chief's reference run in %s.", self.output)
            waiting = True
            time.sleep(_POLL_SECONDS)
        self.check_same()
        self.runner.scoring = self._scoring(reference)
        self._search()

    def report(self, reference: Trial) -> dict[str, Any]:
        """Writes the report and best.yaml; returns the contents of sweep.json."""
        trials = self.runner.trials()
        finished = [t for t in (reference, *trials) if t.status == "finished"]
        objectives = list(self.config.cascade.objectives)
        scoring = self._scoring(reference)
        points = np.array(
            [[t.values[name] for name in objectives] for t in finished], np.float64
        )
        least = [max(reference.values[n], scoring.smallest[n]) for n in objectives]
        scores = {t.name: scoring.score(t.values) or 0.0 for t in finished}
        # The first of equals: the reference, if nothing beats it.
        best = max(finished, key=lambda trial: scores[trial.name])
        members = zip(finished, pareto(points), strict=True)
        content = {
            "objectives": objectives,
            "metric": f"recall@{self.config.evaluation.validation_k}",
            "on": "validation",
            **self._description(),
            "current": {
                p.path: self.space.current(self.config, p.path)
                for p in self.space.parameters
            },
            "best": best.name,
            "pareto": [trial.name for trial, member in members if member],
            "hypervolume": hypervolume(points / np.array(least)),
            REFERENCE: _entry(reference) | {"score": scores[REFERENCE]},
            "trials": [_entry(trial) for trial in trials],
        }
        path = write_sweep(self.output, content, self.space)
        chosen = self.space.configure(self.config, best.settings, best.epochs)
        head = f"# Trial {best.name} of a sweep: score {scores[best.name]:.4f}.\n"
        write_atomic(self.output / "best.yaml", head + chosen.to_yaml())
        _LOG.info("Report: %s", path)
        return content

    def _search(self) -> None:
        tuner = CascadeTuner(self._make_oracle(), str(self.output), self._run)
        with parallel.explained():
            search(tuner)

    def _run(self, name: str, values: dict[str, Any]) -> Trial:
        settings, epochs = self.space.decode(values), values.get("tuner/epochs")
        shown = ", ".join(
            f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
            for path, value in settings.items()
        )
        _LOG.info("Trial %s: %s", name, shown)
        trial = self.runner.run(name, settings, epochs)
        score = "-" if trial.score is None else f"{trial.score:.4f}"
        _LOG.info("Trial %s %s, score %s", name, trial.status, score)
        return trial

    def _make_oracle(self) -> Any:
        stages = map(self.config.stage, self.config.cascade.objectives)
        return make_oracle(
            self.settings.tuner,
            self.space.declare(),
            self.settings.trials,
            self.config.seed,
            max(stage.epochs for stage in stages),
        )

    def _scoring(self, reference: Trial) -> Scoring:
        queries = validation_queries(self._logs(self.config)[0].log)
        return Scoring(
            self.settings.scalarise,
            self.weights,
            reference.values,
            {name: 1 / max(1, count) for name, count in queries.items()},
        )

    def _description(self) -> dict[str, Any]:
        return {
            "tuner": self.settings.tuner,
            "trials_asked": self.settings.trials,
            "scalarise": self.settings.scalarise,
            "weights": self.weights,
            "prune_after": self.settings.prune_after,
            "space": self.space.to_dict(),
        }


def _entry(trial: Trial) -> dict[str, Any]:
    return dataclasses.asdict(trial) | {
        "values": trial.values,
        "seconds": trial.seconds(reused=False),
        "seconds_reused": trial.seconds(reused=True),
    }


def _check_epochs_free(space: Space) -> None:
    for parameter in space.parameters:
        if parameter.path.endswith(".epochs"):
            raise ConfigError(
                "hyperband chooses the epochs of a trial itself. Received: "
                f"{parameter.path!r} in the search space. Leave it out, or take "
                "random or bayesian."
            )
