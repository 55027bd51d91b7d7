"""keras-tuner's searches: the same trials after a kill, budgets, failures."""

import json
import math
from pathlib import Path

import pytest

from tfcsmf.config import Config
from tfcsmf.errors import ConfigError, TfcsmfError
from tfcsmf.tuning.space import Space
from tfcsmf.tuning.trials import Trial
from tfcsmf.tuning.tuners import CascadeTuner, make_oracle, search

SPACE = Space.from_dict(
    {
        "loss.temperature": {"float": [0.01, 1.0], "log": True},
        "cascade.stage.batch_size": {"choice": [32, 64, 128]},
        "cascade.stage.patience": {"int": [1, 5]},
    },
    Config(),
)
# The Gaussian process takes seconds.
BAYESIAN = pytest.param("bayesian", marks=pytest.mark.slow)
NAMES = ["random", "hyperband", BAYESIAN]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Runs:
    """Trials with a known best: temperature .1; remembers what it was asked."""

    def __init__(self, die_at=None, fail=()):
        self.asked, self.die_at, self.fail = [], die_at, fail

    def __call__(self, name, values):
        if len(self.asked) == self.die_at:
            raise Killed
        self.asked.append((name, dict(values)))
        if int(name) in self.fail:
            return Trial(name, {}, status="failed", error="made to fail")
        score = 1 - abs(math.log(values["loss.temperature"] / 0.1))
        return Trial(name, {}, status="finished", score=score)


def tuner(name, folder, runs, trials=12, seed=0, max_epochs=9):
    if name == "bayesian":
        pytest.importorskip("sklearn", reason="needs keras-tuner[bayesian]")
    oracle = make_oracle(name, SPACE.declare(), trials, seed, max_epochs)
    return CascadeTuner(oracle, str(folder), runs)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_search_goes_on_with_the_same_trials(name, tmp_path):
    whole = Runs()
    search(tuner(name, tmp_path / "whole", whole))
    assert len({trial for trial, _ in whole.asked}) == len(whole.asked) <= 12
    asked = []
    for die_at in (0, 3, 1, None):
        part = Runs(die_at)
        try:
            search(tuner(name, tmp_path / "killed", part))
        except Killed:
            pass
        asked += part.asked
    if name == "bayesian":  # its model starts from other random points after a kill
        asked, whole.asked = asked[:4], whole.asked[:4]
    assert asked == whole.asked


@pytest.mark.parametrize("name", ["random", "hyperband"])
def test_a_kill_between_two_files_repeats_nothing(name, tmp_path, monkeypatch):
    whole = Runs()
    search(tuner(name, tmp_path / "whole", whole))
    one = tuner(name, tmp_path / "killed", Runs())
    saved = one.oracle.save
    calls = []

    def save():
        calls.append(None)
        if len(calls) == 6:  # trial.json is there, the state does not know it yet
            raise Killed
        saved()

    monkeypatch.setattr(one.oracle, "save", save)
    with pytest.raises(Killed):
        search(one)
    rest = Runs()
    search(tuner(name, tmp_path / "killed", rest))
    # One whose end was not recorded may be asked for again: its result is kept.
    done = [trial for trial, _ in one._run.asked]
    assert done[:-1] == [trial for trial, _ in whole.asked][: len(done) - 1]
    asked = dict(one._run.asked) | dict(rest.asked)
    assert asked == dict(whole.asked)
    assert set(done[:-1]).isdisjoint(trial for trial, _ in rest.asked)


def test_state_files_are_whole_and_nothing_else_is_left(tmp_path):
    search(tuner("random", tmp_path, Runs(), trials=3))
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"oracle.json", "tuner.json", "trial.json"}
    for path in Path(tmp_path).rglob("*.json"):
        json.loads(path.read_text())


def test_seeds_decide_trials(tmp_path):
    def asked(folder, seed):
        runs = Runs()
        search(tuner("random", tmp_path / folder, runs, trials=3, seed=seed))
        return runs.asked

    assert asked("a", 0) == asked("b", 0) != asked("c", 1)


@pytest.mark.slow
def test_bayesian_search_closes_in_on_the_best(tmp_path):
    runs = Runs()
    search(tuner("bayesian", tmp_path, runs, trials=15))
    found = [abs(math.log(v["loss.temperature"] / 0.1)) for _, v in runs.asked]
    assert min(found[5:]) < 0.2
    assert sum(found[9:]) / 6 < sum(found[:5]) / 5


def test_hyperband_gives_the_best_settings_the_most_epochs(tmp_path):
    runs = Runs()
    search(tuner("hyperband", tmp_path, runs, trials=30))
    assert len(runs.asked) <= 30
    by_epochs = {}
    for _, values in runs.asked:
        score = 1 - abs(math.log(values["loss.temperature"] / 0.1))
        by_epochs.setdefault(values["tuner/epochs"], []).append(score)
    assert sorted(by_epochs) == [1, 3, 9]
    assert max(by_epochs[9]) >= max(by_epochs[1])


def test_hyperband_needs_room():
    with pytest.raises(ConfigError, match="at least 3"):
        make_oracle("hyperband", SPACE.declare(), 2, 0, max_epochs=9)


def test_a_small_space_ends_the_search(tmp_path):
    space = Space.from_dict({"cascade.stage.patience": {"int": [1, 3]}}, Config())
    asked = []

    def run(name, values):
        asked.append(values["cascade.stage.patience"])
        return Trial(name, {}, status="finished", score=1.0)

    oracle = make_oracle("random", space.declare(), 9, 0, max_epochs=1)
    search(CascadeTuner(oracle, str(tmp_path), run))
    assert sorted(asked) == [1, 2, 3]


def test_failures_are_passed_over_until_three_in_a_row(tmp_path):
    runs = Runs(fail=(0, 1, 3))
    search(tuner("random", tmp_path / "a", runs, trials=6))
    assert len(runs.asked) == 6
    runs = Runs(fail=(2, 3, 4))
    with pytest.raises(TfcsmfError, match="3 trials in a row failed.*made to fail"):
        search(tuner("random", tmp_path / "b", runs, trials=9))
    assert len(runs.asked) == 5


def test_an_error_that_is_no_trials_fault_is_raised_as_it_was(tmp_path):
    def run(name, values):
        raise OSError(28, "No space left on device")

    oracle = make_oracle("random", SPACE.declare(), 3, 0, max_epochs=1)
    with pytest.raises(OSError, match="No space left"):
        search(CascadeTuner(oracle, str(tmp_path), run))
