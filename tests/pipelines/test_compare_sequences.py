"""The comparison of sequence encoders: paired, resumable, from validation or test."""

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import compare_sequences

from tfcsmf import cli
from tfcsmf.heterrec.training import SequenceTrainer

SMALL = {
    "simulator": {"users": 120, "items": 60, "exposures_per_user": 20},
    "sequence": {
        "length": 10,
        "width": 8,
        "feed_forward": 16,
        "training": {"epochs": 1, "batch_events": 512},
    },
    "evaluation": {"ks": [5], "validation_k": 5, "bootstrap_samples": 50},
}
SMALL_STEPS = ["sequence.encoder=sasrec", "sequence.item_layers=1"]
LARGE_STEPS = [*SMALL_STEPS, "sequence.training.learning_rate=0.05"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    arguments = ["--config", str(folder / "small.yaml"), "--quiet"]
    arguments += ["--objectives", "exposure", "--output", str(folder / "out")]
    arguments += ["--variant", "small", *SMALL_STEPS]
    both = [*arguments, "--variant", "large", *LARGE_STEPS, "--seeds", "0", "1"]
    assert cli.run(compare_sequences.main, both) == cli.OK
    return folder / "out", arguments, both


def test_differences_are_those_of_the_means_over_users_and_seeds(finished):
    output, _, _ = finished
    content = json.loads((output / "report" / "comparison.json").read_text())
    assert content["reference"] == "small"
    for compared in content["protocols"].values():
        small, large = compared["exposure"]["small"], compared["exposure"]["large"]
        assert "difference" not in small
        for name, apart in large["difference"].items():
            ours, theirs = large["metrics"][name], small["metrics"][name]
            expected = [
                a - b for a, b in zip(ours["seeds"], theirs["seeds"], strict=True)
            ]
            assert apart["seeds"] == pytest.approx(expected)
            assert apart["mean"] == pytest.approx(ours["mean"] - theirs["mean"])
            assert apart["ci95"][0] <= apart["mean"] <= apart["ci95"][1]
        seeds = large["metrics"]["ndcg@5"]["seeds"]
        assert len(seeds) == 2 and seeds != small["metrics"]["ndcg@5"]["seeds"]


def test_nothing_is_trained_twice_and_validation_is_measured_apart(
    finished, monkeypatch, capsys
):
    output, alone, both = finished
    steps = []
    run_epoch = SequenceTrainer._run_epoch
    monkeypatch.setattr(
        SequenceTrainer,
        "_run_epoch",
        lambda self, *rest: steps.append(self) or run_epoch(self, *rest),
    )
    before = (output / "report" / "comparison.json").read_text()
    assert cli.run(compare_sequences.main, both) == cli.OK
    assert (output / "report" / "comparison.json").read_text() == before
    # What was trained for the test is measured on validation as it was kept.
    assert cli.run(compare_sequences.main, [*alone, "--on", "validation"]) == cli.OK
    assert not steps
    content = json.loads((output / "report" / "comparison_validation.json").read_text())
    unseen = content["protocols"]["unseen"]["exposure"]["small"]["metrics"]
    other = json.loads(before)["protocols"]["unseen"]["exposure"]["small"]["metrics"]
    assert unseen["recall@5"]["mean"] != other["recall@5"]["mean"]
    assert "validation queries" in capsys.readouterr().out


def test_bad_variants_are_refused(finished, capsys):
    output, alone, both = finished
    assert cli.run(compare_sequences.main, [*alone, "seed=3"]) == cli.USER_ERROR
    assert "`sequence` alone" in capsys.readouterr().err
    other = [*alone, "sequence.dropout=0.4"]
    assert cli.run(compare_sequences.main, other) == cli.USER_ERROR
    assert "sequence.dropout" in capsys.readouterr().err
    refit = [*alone, "sequence.training.refit=true", "--on", "validation"]
    assert cli.run(compare_sequences.main, refit) == cli.USER_ERROR
    assert "should not be trained on it" in capsys.readouterr().err


def test_a_log_that_is_refused_leaves_nothing(tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--events", str(tmp_path / "missing.parquet"), "--quiet"]
    arguments += ["--objectives", "view", "--output", str(output)]
    arguments += ["--variant", "small", *SMALL_STEPS]
    assert cli.run(compare_sequences.main, arguments) == cli.USER_ERROR
    assert "that exists" in capsys.readouterr().err
    assert not output.exists()
