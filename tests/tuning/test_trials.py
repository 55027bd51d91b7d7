"""Trials: stopped when poor, never repeated, and the same with shared stages."""

import dataclasses
import json

import pytest

from tfcsmf.cascade import trainer
from tfcsmf.config import Config
from tfcsmf.errors import ConfigError
from tfcsmf.tuning.logs import Logs
from tfcsmf.tuning.scores import Scoring
from tfcsmf.tuning.stage_cache import StageCache
from tfcsmf.tuning.trials import REFERENCE, Trial, TrialRunner, load_trial

NAMES = ("a", "b", "c")
EVEN = dict.fromkeys(NAMES, 1.0)


def runner(folder, prune_after=3, config=None, logs=None, cached=0):
    config = config or Config()
    cache = StageCache(folder / "stages", cached)
    made = TrialRunner(config, logs, folder / "trials", cache, prune_after)
    made.scoring = Scoring("weights", EVEN, EVEN, EVEN)
    return made


def unscored(folder, config, logs, cached=4):
    made = runner(folder, 0, config, logs, cached)
    made.scoring = None
    return made


def trial(name, *values, **options):
    stages = [
        {"name": n, "value": v, "seconds": 1.0, "epochs": 1, "reused": False}
        for n, v in zip(NAMES, values, strict=False)
    ]
    return Trial(str(name), {}, stages=stages, **options)


def test_a_trial_is_poor_below_the_median_of_those_that_came_as_far(tmp_path):
    runs = runner(tmp_path)
    own = trial(9, 0.5, score=0.5)
    for number, first in enumerate((0.3, 0.4)):
        runs._save(trial(number, first, 0.9, status="finished"))
    runs._save(trial(REFERENCE, 0.9, 0.9, status="finished"))
    runs._save(trial(7, 0.7, status="running"))
    assert not runs._is_poor(own)  # the median is .4; the reference does not count
    runs._save(trial(8, 0.6, status="pruned"))
    assert not runs._is_poor(own)  # .5, and not below it
    runs._save(trial(10, 0.6, status="pruned"))
    assert runs._is_poor(own)  # .6
    further = trial(9, 0.5, 0.1)
    further.score = runs.scoring.score(further.values)
    assert not runs._is_poor(further)  # only two came as far
    runs.prune_after = 0
    assert not runs._is_poor(own)


def test_what_is_over_is_not_run_again(tmp_path, monkeypatch):
    runs, calls = runner(tmp_path), []

    def train(self, own, config):
        calls.append(config.stage("click").tau)
        own.status = "finished"

    monkeypatch.setattr(TrialRunner, "_train", train)
    settings = {"cascade.stages.click.tau": 0.3}
    first = runs.run("0", settings)
    assert runs.run("0", settings) == first and calls == [0.3]
    runs.run("0", {"cascade.stages.click.tau": 0.2})  # another trial of that name
    assert calls == [0.3, 0.2]
    assert load_trial(tmp_path / "trials" / "0").settings == {
        "cascade.stages.click.tau": 0.2
    }


def test_settings_that_do_not_fit_together_are_told_by_the_trial(tmp_path):
    failed = runner(tmp_path).run("0", {"towers.dimension": 2})
    assert failed.status == "failed" and "at least 3" in failed.error
    assert load_trial(tmp_path / "trials" / "0") == failed


def test_two_processes_do_not_run_one_trial(tmp_path):
    runs = runner(tmp_path)

    def train(self, own, config):
        with pytest.raises(ConfigError, match="in use"):
            runner(tmp_path).run("0", {})
        own.status = "finished"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialRunner, "_train", train)
        assert runs.run("0", {}).status == "finished"


@pytest.fixture(scope="module")
def small(tiny_config):
    tree = tiny_config.to_dict()
    tree["cascade"]["objectives"] = ["exposure", "click"]
    tree["cascade"]["stage"] |= {"recovery_epochs": 1}
    tree["evaluation"]["validation_k"] = 5
    return Config.from_dict(tree)


def comparable(found):
    return json.loads(
        json.dumps(
            [{k: s[k] for k in ("name", "value", "epochs")} for s in found.stages]
        )
    )


@pytest.mark.slow
def test_shared_stages_give_the_same_results_bit_for_bit(small, tmp_path):
    logs = Logs(small)
    shared = unscored(tmp_path / "shared", small, logs)
    alone = unscored(tmp_path / "alone", small, logs, cached=0)
    varied = {"cascade.stages.click.learning_rate": 0.01, "loss.hard_negatives": 4}
    first = shared.run("0", {})
    second = shared.run("1", varied)
    assert [stage["reused"] for stage in second.stages] == [True, False]
    assert second.seconds(reused=True) == first.stages[0]["seconds"]
    assert comparable(second) == comparable(alone.run("1", varied))


@pytest.mark.slow
def test_a_killed_trial_goes_on_where_it_was(small, tmp_path, monkeypatch):
    logs = Logs(small)
    whole = unscored(tmp_path / "whole", small, logs).run(REFERENCE, {})
    runs = unscored(tmp_path / "killed", small, logs)
    steps = trainer.StageStep.__call__
    seen = []

    class Killed(BaseException):
        pass

    def dies(self, batch):
        seen.append(None)
        if len(seen) == 5:
            raise Killed
        return steps(self, batch)

    monkeypatch.setattr(trainer.SavePace, "affordable", lambda self: True)
    monkeypatch.setattr(trainer.StageStep, "__call__", dies)
    with pytest.raises(Killed):
        runs.run(REFERENCE, {})
    assert load_trial(runs.folder / REFERENCE).status == "running"
    again = runs.run(REFERENCE, {})
    assert comparable(again) == comparable(whole)
    assert dataclasses.asdict(again)["status"] == "finished"
    assert not (runs.folder / REFERENCE / "checkpoints").exists()
