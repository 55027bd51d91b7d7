"""The sweep's folder: resumed, refused, reported; trials are formulas here."""

import csv
import json
import math

import pytest
import yaml

from tfcsmf.config import Config
from tfcsmf.errors import CheckpointError, ConfigError, TfcsmfError
from tfcsmf.tuning import Space, SweepSettings, run_sweep, sweep_figures
from tfcsmf.tuning.report import format_sweep
from tfcsmf.tuning.trials import TrialRunner

OBJECTIVES = ["exposure", "click"]
TREE = {
    "loss.temperature": {"float": [0.01, 1.0], "log": True},
    "cascade.stages.click.tau": {"choice": [0.1, 0.3]},
}


@pytest.fixture
def config(tiny_config):
    tree = tiny_config.to_dict() | {"seed": 3}
    tree["cascade"]["objectives"] = OBJECTIVES
    return Config.from_dict(tree)


@pytest.fixture
def trained(monkeypatch):
    """Replaces training: the nearer the temperature is to .1, the better."""
    names = []

    def train(self, trial, config):
        self._logs(config)
        names.append(trial.name)
        value = math.exp(-abs(math.log(config.loss.temperature / 0.1)))
        second = value * (1.1 if config.stage("click").tau > 0.2 else 1.0)
        for name, one in zip(OBJECTIVES, (value, second), strict=True):
            trial.stages.append(
                {"name": name, "value": one, "seconds": 2.0, "epochs": 1,
                 "reused": name == "exposure"}
            )  # fmt: skip
        trial.score = self.scoring.score(trial.values) if self.scoring else None
        trial.status = "finished"

    monkeypatch.setattr(TrialRunner, "_train", train)
    return names


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Replaces the figures, which take longer than all the rest; returns them."""
    real = sweep_figures.draw
    monkeypatch.setattr(sweep_figures, "draw", lambda *_: {"history": b"image"})
    return real


def sweep(config, output, tree=TREE, resume=False, **settings):
    space = Space.from_dict(tree, config)
    chosen = SweepSettings(**({"trials": 6, "prune_after": 0} | settings))
    return run_sweep(config, output, space, chosen, resume, show_progress=False)


def test_the_report_says_what_came_out(config, tmp_path, trained):
    content = sweep(config, tmp_path / "out")
    assert trained == ["reference", *"012345"]
    on_disk = json.loads((tmp_path / "out/report/sweep.json").read_text())
    assert on_disk == content
    best = max(content["trials"], key=lambda trial: trial["score"])
    assert content["best"] == best["name"] and best["score"] > 1
    assert content["reference"]["score"] == pytest.approx(1.0)
    for trial in content["trials"]:
        ratios = [
            trial["values"][name] / content["reference"]["values"][name]
            for name in OBJECTIVES
        ]
        assert trial["score"] == pytest.approx(sum(ratios) / 2)
    assert best["name"] in content["pareto"]

    chosen = Config.from_yaml(str(tmp_path / "out/best.yaml"))
    assert chosen == Space.configure(config, best["settings"])
    with open(tmp_path / "out/report/trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows][0] == best["name"] and len(rows) == 7
    assert float(rows[0]["loss.temperature"]) == best["settings"]["loss.temperature"]
    text = (tmp_path / "out/report/sweep.txt").read_text()
    assert text == format_sweep(content)
    assert f"best: trial {best['name']}" in text
    assert "12 s, 12 s reused" in text
    page = (tmp_path / "out/report/index.html").read_text()
    assert "history_dark.png" in page and "pareto_dark.png" not in page
    assert (tmp_path / "out/report/history_dark.png").read_bytes() == b"image"


def test_figures_are_drawn_for_what_there_is(config, tmp_path, trained, drawn):
    content = sweep(config, tmp_path / "out", trials=2)
    space = Space.from_dict(TREE, config)
    images = drawn(content, space, "light")
    assert list(images) == ["history", "coordinates", "pareto"]
    assert all(image.startswith(b"\x89PNG") for image in images.values())
    for trial in content["trials"]:
        trial |= {"status": "failed", "score": None, "values": {}, "stages": []}
    single = content | {"objectives": ["exposure"], "best": "reference"}
    assert list(drawn(single, space, "dark")) == ["history"]


def test_a_resumed_sweep_repeats_nothing_and_may_have_more_trials(
    config, tmp_path, trained
):
    whole = sweep(config, tmp_path / "whole", trials=6)
    trained.clear()
    first = sweep(config, tmp_path / "parts", trials=2)
    again = sweep(config, tmp_path / "parts", trials=2, resume=True)
    assert again == first and trained == ["reference", "0", "1"]
    more = sweep(config, tmp_path / "parts", trials=6, resume=True)
    assert trained == ["reference", *"012345"]
    assert more == whole


def test_nothing_better_than_the_configuration_leaves_it_as_it_is(
    config, tmp_path, trained
):
    tree = config.to_dict()
    tree["loss"]["temperature"] = 0.1
    tree["cascade"]["stages"] = {"click": {"tau": 0.3}}
    content = sweep(Config.from_dict(tree), tmp_path / "out", trials=3)
    assert content["best"] == "reference"
    assert "no trial is better" in format_sweep(content)
    assert Config.from_yaml(str(tmp_path / "out/best.yaml")) == Config.from_dict(tree)


def test_another_sweep_is_not_continued(config, tmp_path, trained):
    out = tmp_path / "out"
    sweep(config, out, trials=2)
    with pytest.raises(CheckpointError, match="--resume"):
        sweep(config, out, trials=2)
    with pytest.raises(CheckpointError, match="space: .* before"):
        tree = TREE | {"cascade.stages.click.tau": {"choice": [0.1]}}
        sweep(config, out, tree, trials=2, resume=True)
    with pytest.raises(CheckpointError, match="weights: .* now"):
        sweep(config, out, trials=2, weights={"click": 2}, resume=True)
    with pytest.raises(CheckpointError, match="seed: 3 before, 4 now"):
        other = Config.from_dict(config.to_dict() | {"seed": 4})
        sweep(other, out, trials=2, resume=True)
    assert trained == ["reference", "0", "1"]


def test_another_run_is_left_alone(config, tmp_path, trained):
    out = tmp_path / "out"
    out.mkdir()
    text = yaml.safe_dump(config.to_dict() | {"run": {"status": "finished"}})
    (out / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="folder of a sweep"):
        sweep(config, out, resume=True)


def test_another_log_is_refused(config, tmp_path, trained):
    sweep(config, tmp_path / "out", trials=1)
    (tmp_path / "out/log.json").write_text('{"fingerprint": "of another"}\n')
    with pytest.raises(CheckpointError, match="log it began with"):
        sweep(config, tmp_path / "out", trials=1, resume=True)


def test_a_configuration_that_fails_is_told_and_tried_again(
    config, tmp_path, trained, monkeypatch
):
    def fails(self, trial, config):
        raise TfcsmfError("no good")

    with monkeypatch.context() as patch:
        patch.setattr(TrialRunner, "_train", fails)
        with pytest.raises(TfcsmfError, match="configuration itself fails: no good"):
            sweep(config, tmp_path / "out")
    assert sweep(config, tmp_path / "out", resume=True)["best"] != "reference"


def test_what_cannot_be_is_refused_before_anything_is_written(
    config, tmp_path, trained, monkeypatch
):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="at least 1"):
        sweep(config, out, trials=0)
    with pytest.raises(ConfigError, match="leave one|Leave one"):
        sweep(config, out, scalarise="hypervolume", weights={"click": 1})
    with pytest.raises(ConfigError, match="Did you mean 'click'"):
        sweep(config, out, weights={"clik": 1})
    with pytest.raises(ConfigError, match="chooses the epochs"):
        tree = {"cascade.stage.epochs": {"int": [1, 2]}}
        sweep(config, out, tree, tuner="hyperband")
    blind = config.to_dict()
    blind["data"]["validation_users"] = 0
    with pytest.raises(ConfigError, match="validation pairs"):
        sweep(Config.from_dict(blind), out)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(ConfigError, match="Set all of them, or none"):
        sweep(config, out)
    assert not out.exists() and not trained


def test_hyperband_bounds_the_epochs_of_every_stage(config, tmp_path, monkeypatch):
    tree = config.to_dict()
    tree["cascade"]["stage"]["epochs"] = 4
    seen = []

    def train(self, trial, config):
        epochs = [config.stage(name).epochs for name in OBJECTIVES]
        seen.append((trial.epochs, epochs))
        trial.stages = [
            {"name": name, "value": 0.5, "seconds": 1.0, "epochs": 1, "reused": False}
            for name in OBJECTIVES
        ]
        trial.score, trial.status = 1.0, "finished"

    monkeypatch.setattr(TrialRunner, "_train", train)
    sweep(Config.from_dict(tree), tmp_path / "out", tuner="hyperband", trials=12)
    assert seen[0] == (None, [4, 4])
    assert {epochs for epochs, _ in seen[1:]} == {2, 4}
    assert all(stages == [epochs, epochs] for epochs, stages in seen[1:])


def test_trials_see_no_test_data(config, tmp_path, monkeypatch):
    def train(self, trial, config):
        log = self._logs(config)[0].log
        assert log.test == {}
        assert log.test_histories is log.train_histories
        trial.stages = [
            {"name": name, "value": 0.5, "seconds": 1.0, "epochs": 1, "reused": False}
            for name in OBJECTIVES
        ]
        trial.score, trial.status = 1.0, "finished"

    monkeypatch.setattr(TrialRunner, "_train", train)
    tree = TREE | {"data.history_length": {"int": [2, 6]}}
    assert len(sweep(config, tmp_path / "out", tree, trials=2)["trials"]) == 2
