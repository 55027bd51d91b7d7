"""`--dataset` in front of the configuration."""

import argparse
import importlib
import sys
from pathlib import Path

import polars as pl
import pytest

from tfcsmf import cli
from tfcsmf.config import Config
from tfcsmf.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "pipelines"))


def _arguments(*words):
    parser = argparse.ArgumentParser()
    cli.add_log_options(parser)
    parser.add_argument("--extend")
    return parser.parse_args(list(words))


@pytest.fixture
def folder(tmp_path):
    lines = ["1,7,70,pv,1511544070", "1,7,70,buy,1511544071", "2,8,70,cart,1511544072"]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
    return ["--dataset", "taobao_userbehavior", "--data-dir", str(tmp_path)]


def test_a_data_set_gives_tables_and_objectives(folder):
    tree = cli.with_dataset({"seed": 3}, _arguments(*folder))
    config = Config.from_dict(tree)
    assert config.seed == 3
    assert config.cascade.objectives == ("pv", "cart", "buy")
    assert pl.read_parquet(config.data.events).height == 3
    assert pl.read_parquet(config.data.items).height == 2
    assert config.data.users is None


def test_objectives_and_tables_of_ones_own_come_first(folder):
    tree = {"cascade": {"objectives": ["pv"]}, "data": {"users": "u.csv"}}
    merged = cli.with_dataset(tree, _arguments(*folder))
    assert merged["cascade"]["objectives"] == ["pv"]
    assert merged["data"]["users"] == "u.csv"
    assert tree["data"] == {"users": "u.csv"}  # not changed in place


def test_without_it_nothing_changes():
    tree = {"data": {"events": "e.csv"}}
    assert cli.with_dataset(tree, _arguments("--items", "i.csv")) == tree


def test_the_log_of_a_run_to_extend_is_replaced(folder):
    tree = {"data": {"events": "old", "items": "old", "users": "old"}}
    merged = cli.with_dataset(tree, _arguments(*folder, "--extend", "base"))
    assert merged["data"]["events"].endswith("events.parquet")
    assert merged["data"]["users"] is None


@pytest.mark.parametrize(
    ("tree", "words", "message"),
    [
        ({}, ["--events", "e.csv"], "--dataset and --events"),
        ({"data": {"events": "e"}}, [], "--dataset and data.events"),
        ({}, ["--set", "data.events=e"], "--dataset and data.events"),
    ],
)
def test_two_logs_are_refused(folder, tree, words, message):
    with pytest.raises(ConfigError, match=message):
        cli.with_dataset(tree, _arguments(*folder, *words))


def test_half_of_the_options_is_refused():
    with pytest.raises(ConfigError, match="needs --data-dir.*kaggle"):
        cli.with_dataset({}, _arguments("--dataset", "retailrocket"))
    for option in ("--data-dir", "--cache-dir"):
        with pytest.raises(ConfigError, match=f"{option} belongs to a data set"):
            cli.with_dataset({}, _arguments(option, "x"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'kuairand_1k'"):
        cli.with_dataset({}, _arguments("--dataset", "kuairand1k"))


@pytest.mark.parametrize("name", ["run_cascade", "compare", "run_sequence", "sweep"])
def test_every_pipeline_that_reads_a_log_has_the_option(name, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--dataset", "retailroket", "--output", str(output)]
    assert cli.run(importlib.import_module(name).main, words) == cli.USER_ERROR
    assert "Did you mean 'retailrocket'" in capsys.readouterr().err
    assert not output.exists()
