"""keras-tuner's own searches, made durable, with trials of the cascade.

keras-tuner runs on Keras 3 and the cascade on Keras 2; they never meet, because a
trial is run by a function that returns numbers. What is changed of keras-tuner:

- its state is written atomically, so that a kill leaves the state before or after;
- a trial it had begun but not recorded is drawn again when it is read back;
- a search of Bayesian optimisation begins with a third of its trials at random
  (keras-tuner: three per parameter, often more than there are trials);
- hyperband has as many brackets as fit in the trials there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import keras_tuner
from keras_tuner.engine import base_tuner
from keras_tuner.errors import FailedTrialError, FatalError

from tfcsmf.errors import ConfigError, TfcsmfError
from tfcsmf.files import write_atomic
from tfcsmf.tuning.trials import Trial

TunerName = Literal["random", "bayesian", "hyperband"]
RunTrial = Callable[[str, dict[str, Any]], Trial]

SCORE = "score"
_FACTOR = 3  # of hyperband: one in so many goes on with so many times the epochs
_MOST_FAILURES = 3  # in a row


class _Durable:
    """Mixed into an oracle: its state survives a kill at any moment."""

    def save(self) -> None:
        oracle: Any = self
        write_atomic(oracle._get_oracle_fname(), json.dumps(oracle.get_state()))

    def _save_trial(self, trial: Any) -> None:
        oracle: Any = self
        folder = oracle._get_trial_dir(trial.trial_id)
        text = json.dumps(trial.get_state())
        write_atomic(os.path.join(folder, "trial.json"), text)

    def reload(self) -> None:
        oracle: Any = self
        super().reload()  # type: ignore[misc]
        # In the order they began; one that is not in the state is drawn again.
        oracle.trials = {name: oracle.trials[name] for name in oracle.start_order}


class _Random(_Durable, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> Any:
        with warnings.catch_warnings():  # of the Gaussian process: of no use here
            warnings.simplefilter("ignore")
            return super().populate_space(trial_id)


class _Hyperband(_Durable, keras_tuner.oracles.HyperbandOracle):
    """Hyperband within a number of trials.

    Args:
      trials: most runs, those of a setting with more epochs counted again.
      max_epochs: of the last round.
      **options: of keras-tuner's oracle.
    """

    def __init__(self, trials: int, max_epochs: int, **options: Any) -> None:
        super().__init__(max_epochs=max_epochs, factor=_FACTOR, **options)
        most = self._get_num_brackets()
        sizes = [self._trials_of(brackets) for brackets in range(1, most + 1)]
        if sizes[0] > trials:
            raise ConfigError(
                f"hyperband over {max_epochs} epochs needs --trials of at least "
                f"{sizes[0]}. Received: {trials}. Allow more, lower "
                "cascade.stage.epochs, or take random or bayesian."
            )
        brackets = max(n for n in range(1, most + 1) if sizes[n - 1] <= trials)
        self.hyperband_iterations = trials // sizes[brackets - 1]
        # A little below: keras-tuner counts brackets by repeated division.
        self.min_epochs = 0.999 * max_epochs / _FACTOR ** (brackets - 1)
        self._current_bracket = brackets - 1
        self._brackets: list[dict[str, Any]] = []
        self._start_new_bracket()

    def _trials_of(self, brackets: int) -> int:
        """Returns the runs of one iteration over the last `brackets` brackets."""
        return sum(
            self._get_size(bracket, number)
            for bracket in range(brackets)
            for number in range(bracket + 1)
        )


def make_oracle(
    name: TunerName,
    space: keras_tuner.HyperParameters,
    trials: int,
    seed: int,
    max_epochs: int,
) -> Any:
    """Returns the part of keras-tuner that chooses trials.

    Args:
      name: of the search.
      space: what is searched.
      trials: how many runs at most.
      seed: >= 0.
      max_epochs: of a stage; used by hyperband.

    Raises:
      ConfigError: if hyperband needs more trials, or a package is missing.
    """
    options: dict[str, Any] = {
        "objective": keras_tuner.Objective(SCORE, "max"),
        "hyperparameters": space,
        "allow_new_entries": False,
        "seed": seed + 1,  # keras-tuner takes 0 for none
        # Counted per process instead, where the reason is known.
        "max_consecutive_failed_trials": sys.maxsize,
    }
    if name == "hyperband":
        return _Hyperband(trials, max_epochs, **options)
    if name == "random":
        return _Random(max_trials=trials, **options)
    initial = max(3, min(3 * len(space.space), trials // 3))
    try:
        return _Bayesian(max_trials=trials, num_initial_points=initial, **options)
    except ImportError as error:
        raise ConfigError(
            "--tuner bayesian needs scipy and scikit-learn. Received: neither, or one "
            "of them. Install keras-tuner[bayesian], or take --tuner random."
        ) from error


class CascadeTuner(base_tuner.BaseTuner):
    """keras-tuner's loop over trials of the cascade.

    With `KERASTUNER_TUNER_ID`, `KERASTUNER_ORACLE_IP` and `KERASTUNER_ORACLE_PORT` in
    the environment it is the chief or a worker of a parallel search, as any tuner of
    keras-tuner is.

    Args:
      oracle: what `make_oracle` returned.
      directory: for the state of the search.
      run: takes the name and the values of a trial.
    """

    def __init__(self, oracle: Any, directory: str, run: RunTrial) -> None:
        self._run = run
        self._failures = 0
        self._idle = False
        oracle.verbose = 0
        with contextlib.redirect_stdout(sys.stderr):  # it prints where it reads
            super().__init__(oracle, directory=directory, project_name="tuner")
        if not self._is_worker():
            self.save()  # else a kill in the first trial would begin anew

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Runs one trial; see `keras_tuner.Tuner.run_trial`.

        Raises:
          FailedTrialError: where the settings were at fault.
          FatalError: for anything else, and where too many failed in a row.
        """
        try:
            done = self._run(trial.trial_id, dict(trial.hyperparameters.values))
        except Exception as error:
            raise FatalError(str(error)) from error
        if done.score is None or done.status == "failed":
            self._failures += 1
            reason = done.error or "no objective with a weight was reached"
            if self._failures == _MOST_FAILURES:
                raise FatalError(reason) from TfcsmfError(
                    f"{_MOST_FAILURES} trials in a row failed, the last one with: "
                    f"{reason}"
                )
            raise FailedTrialError(reason)
        self._failures = 0
        return {SCORE: done.score, **done.values}

    def pre_create_trial(self) -> None:
        """Waits a little where the last call brought no trial."""
        if self._idle:
            time.sleep(0.5)
        self._idle = True

    def on_trial_begin(self, trial: Any) -> None:
        """Notes that there is a trial."""
        self._idle = False

    def save(self) -> None:
        """Writes the state, atomically."""
        if not self._is_worker():
            self.oracle.save()
            write_atomic(self._get_tuner_fname(), json.dumps(self.get_state()))

    def _get_tuner_fname(self) -> str:
        # Alone or as chief: either continues what the other began.
        return os.path.join(str(self.project_dir), "tuner.json")


def search(tuner: CascadeTuner) -> None:
    """Runs a search; raises what stopped it as it was raised."""
    try:
        tuner.search()
    except FatalError as error:
        raise (error.__cause__ or error) from None
