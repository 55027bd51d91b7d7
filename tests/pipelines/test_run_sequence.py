"""The sequence command: what it leaves behind, and what it says to bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import run_sequence

from tfcsmf import cli
from tfcsmf.cascade.checkpoints import CheckpointStore, SavePace

SMALL = {
    "simulator": {"users": 120, "items": 60, "exposures_per_user": 20},
    "sequence": {
        "length": 10,
        "width": 8,
        "feed_forward": 16,
        "head_units": [8],
        "steps": 1,
        "training": {"epochs": 2, "batch_events": 256, "refit": True},
    },
    "cascade": {"checkpoint_every": 2},
    "evaluation": {"ks": [5], "validation_k": 5, "bootstrap_samples": 20},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    common = ["--config", str(folder / "small.yaml"), "--quiet"]
    objectives = ["--objectives", "exposure,click", "--encoder", "merged"]
    output = folder / "out"
    arguments = [*common, *objectives, "--output", str(output)]
    assert cli.run(run_sequence.main, arguments) == cli.OK
    return output, arguments


def test_it_leaves_metrics_a_report_and_the_best_parameters(finished):
    output, _ = finished
    metrics = json.loads((output / "report" / "metrics.json").read_text())
    assert metrics["objectives"] == ["exposure", "click"]
    assert metrics["encoder"] == "merged"
    for protocol in ("standard", "unseen"):
        for result in metrics["protocols"][protocol].values():
            assert 0.0 < result["recall@5"] <= 1.0
            low, high = result["recall@5_ci95"]
            assert low <= result["recall@5"] <= high
    stage, again = metrics["stages"]
    assert stage["epochs"] == 2 and stage["examples_per_second"] > 0
    assert again["epochs"] == stage["best_epoch"]
    assert "popularity" in metrics["baselines"]
    assert "exposure" in (output / "report" / "index.html").read_text()
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["run"]["status"] == "finished"
    checkpoint = CheckpointStore(output / "checkpoints").latest()
    sizes = sum(int(np.prod(values.shape)) for values in checkpoint.arrays.values())
    assert sizes == metrics["model"]["parameters"]
    assert metrics["serving_version"] == 1
    about = json.loads((output / "serving/1/assets.extra/cascade.json").read_text())
    assert about["objectives"] == ["exposure + click"]
    assert about["index"]["kind"] == "exact"
    assert {"history_exposure", "history_click/time"} <= set(about["query_inputs"])


def test_a_folder_is_used_once(finished, capsys):
    output, arguments = finished
    before = (output / "report" / "metrics.json").read_bytes()
    assert cli.run(run_sequence.main, arguments) == cli.USER_ERROR
    assert "holds a run already" in capsys.readouterr().err
    assert (output / "report" / "metrics.json").read_bytes() == before


class Killed(BaseException):
    """Unlike an `Exception` it passes through the command, as a signal would."""


@pytest.mark.slow  # tests/heterrec has a quick one, of the trainer
@pytest.mark.parametrize("saves", [2, 5])
def test_a_killed_run_resumes_to_the_same_end(
    finished, tmp_path, saves, monkeypatch, capsys
):
    reference, arguments = finished
    output = tmp_path / "out"
    arguments = [*arguments[:-1], str(output)]
    # At every step it may, however long that takes.
    monkeypatch.setattr(SavePace, "affordable", lambda self: True)
    original, done = CheckpointStore.save, []

    def dying(self, state, arrays):
        path = original(self, state, arrays)
        done.append(state)
        if len(done) == saves:
            raise Killed
        return path

    monkeypatch.setattr(CheckpointStore, "save", dying)
    with pytest.raises(Killed):
        cli.run(run_sequence.main, arguments)
    within, epochs = done[-1]["within"], done[-1]["progress"]["epochs"]
    assert within > 0 if saves == 2 else epochs > 0
    assert cli.run(run_sequence.main, arguments) == cli.USER_ERROR
    assert "--resume" in capsys.readouterr().err
    other = [*arguments, "--resume", "--seed", "5"]
    assert cli.run(run_sequence.main, other) == cli.USER_ERROR
    assert "own configuration" in " ".join(capsys.readouterr().err.split())
    assert cli.run(run_sequence.main, [*arguments, "--resume"]) == cli.OK
    ours = CheckpointStore(output / "checkpoints").latest()
    theirs = CheckpointStore(reference / "checkpoints").latest()
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, value in theirs.arrays.items():
        np.testing.assert_array_equal(ours.arrays[name], value, err_msg=name)
    for state in (ours.state, theirs.state):
        for part in (state["progress"], *state["progress"]["finished"]):
            part.pop("seconds")
            part.pop("examples_per_second", None)
    assert ours.state == theirs.state
    metrics = [
        json.loads((folder / "report" / "metrics.json").read_text())
        for folder in (output, reference)
    ]
    assert metrics[0]["protocols"] == metrics[1]["protocols"]
    # It is over: nothing is done again.
    assert cli.run(run_sequence.main, [*arguments, "--resume"]) == cli.OK
    assert [path.name for path in (output / "serving").glob("[0-9]*")] == ["1"]


def test_mistakes_are_told_in_words(tmp_path, capsys):
    arguments = ["--encoder", "sasreck", "--output", str(tmp_path / "out")]
    assert cli.run(run_sequence.main, arguments) == cli.USER_ERROR
    assert "sequence.encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
