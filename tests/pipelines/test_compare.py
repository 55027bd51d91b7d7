"""The comparison command; the package module has tests of its own."""

import json
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import compare

from tfcsmf import cli

SMALL = {
    "simulator": {"users": 60, "items": 40, "exposures_per_user": 20},
    "evaluation": {"ks": [5], "bootstrap_samples": 20},
}


def _run(tmp_path, *arguments):
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    output = tmp_path / "out"
    common = ["--config", str(config), "--output", str(output), "--quiet"]
    return cli.run(compare.main, [*common, *arguments]), output


def test_it_prints_a_table_and_leaves_a_report(tmp_path, capsys):
    systems = ["--systems", "popularity", "seen_first", "--seeds", "0", "1"]
    status, output = _run(tmp_path, *systems, "--objectives", "exposure,click")
    assert status == cli.OK
    content = json.loads((output / "report" / "comparison.json").read_text())
    assert content["objectives"] == ["exposure", "click"]
    assert content["systems"]["popularity"]["seeds"] == [0, 1]
    printed = capsys.readouterr().out
    assert printed.strip() == (output / "report/comparison.txt").read_text().strip()


def test_mistakes_are_told_in_words(tmp_path, capsys):
    status, output = _run(tmp_path, "--systems", "popularityy")
    assert status == cli.USER_ERROR
    assert "Did you mean 'popularity'" in capsys.readouterr().err
    assert not output.exists()


def test_all_names_can_be_listed(tmp_path, capsys):
    status, _ = _run(tmp_path, "--list")
    assert status == cli.OK
    printed = capsys.readouterr().out
    assert "finetune_last" in printed
    assert "freed_zero" in printed and "cascade.stage.freed=zero" in printed
