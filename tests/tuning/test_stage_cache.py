"""Which trials share a stage, what a fingerprint sees, and the folder of states."""

import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.simulator import simulate
from tfcsmf.tuning.space import Space
from tfcsmf.tuning.stage_cache import StageCache, log_fingerprint, stage_key


def keys(*settings):
    config = Space.configure(Config(), dict(settings))
    return [stage_key(config, "log", stage) for stage in range(3)]


def shared(*settings):
    """Number of stages shared with the defaults."""
    same = [a == b for a, b in zip(keys(*settings), keys(), strict=True)]
    assert same == sorted(same, reverse=True)  # never a later one alone
    return sum(same)


@pytest.mark.parametrize(
    ("path", "value", "stages"),
    [
        ("cascade.stages.exposure.tau", 0.3, 0),
        ("cascade.stages.click.learning_rate", 0.002, 1),
        ("cascade.stages.click.freed", "zero", 1),
        ("cascade.stages.conversion.epochs", 3, 2),
        ("cascade.stage.tau", 0.3, 0),
        ("loss.margin.strength", 0.3, 1),
        ("loss.margin.form", "order", 1),
        ("loss.hard_negatives", 32, 1),
        ("loss.temperature", 0.2, 0),
        ("loss.uniform_negatives", 3, 0),
        ("towers.dimension", 32, 0),
        ("cascade.criterion", "random", 0),
        ("data.history_length", 7, 0),
    ],
)
def test_a_setting_parts_trials_from_the_stage_on_that_uses_it(path, value, stages):
    assert shared((path, value)) == stages


def test_what_a_stage_uses_counts_not_where_it_is_set():
    everywhere = {"cascade": {"stage": {"tau": 0.3}}}
    names = Config().cascade.objectives
    each = {"cascade": {"stages": {name: {"tau": 0.3} for name in names}}}
    one, other = (Config.from_dict(tree) for tree in (everywhere, each))
    assert stage_key(one, "log", 2) == stage_key(other, "log", 2)


def test_another_log_shares_nothing():
    assert stage_key(Config(), "log", 0) != stage_key(Config(), "other", 0)


def split_log(tiny_config, folder, change):
    """Prepares the tiny log with a split column; `change` gets its test rows."""
    simulation = simulate(
        tiny_config.simulator, tiny_config.cascade.objectives, tiny_config.seed
    )
    events = simulation.events.with_row_index("row").with_columns(
        pl.when(pl.col("row") % 10 == 0)
        .then(pl.lit("test"))
        .when(pl.col("row") % 10 == 1)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
        .alias("split")
    )
    test = change(events.filter(pl.col("split") == "test"))
    events = pl.concat([events.filter(pl.col("split") != "test"), test]).drop("row")
    tree = tiny_config.to_dict()
    for name, table in (("events", events), ("items", simulation.items)):
        folder.mkdir(parents=True, exist_ok=True)
        table.write_parquet(folder / f"{name}.parquet")
        tree["data"][name] = str(folder / f"{name}.parquet")
    return prepare(Config.from_dict(tree))


def test_the_fingerprint_sees_everything_but_test_data(tiny_config, tiny_log, tmp_path):
    def turned(test):
        return test.with_columns(pl.col("item_id").reverse())

    log = split_log(tiny_config, tmp_path / "a", lambda test: test)
    other = split_log(tiny_config, tmp_path / "b", turned)
    name = log.objectives[0]
    assert not np.array_equal(
        log.test[name].targets.items, other.test[name].targets.items
    )
    assert log_fingerprint(log) == log_fingerprint(other)

    validation = dict(log.validation)
    one = validation[name]
    validation[name] = replace(one, users=one.users[::-1].copy())
    assert log_fingerprint(replace(log, validation=validation)) != log_fingerprint(log)
    features = dict(log.items.features)
    feature = next(iter(features))
    features[feature] = np.roll(features[feature], 1, axis=0)
    items = replace(log.items, features=features)
    assert log_fingerprint(replace(log, items=items)) != log_fingerprint(log)
    assert log_fingerprint(tiny_log) != log_fingerprint(log)


def test_states_come_back_and_the_oldest_go_first(tmp_path):
    cache = StageCache(tmp_path, most=2)
    assert cache.load("a") is None
    for number, name in enumerate("abc"):
        cache.save(name, {"n": number}, {"x": np.full(3, number)})
        os.utime(tmp_path / name, (number, number))
        if name == "b":
            assert cache.load("a").state == {"n": 0}  # used, so younger than b
    assert cache.load("b") is None
    assert cache.load("a").arrays["x"].tolist() == [0, 0, 0]
    assert cache.load("c").state == {"n": 2}


def test_a_state_that_is_there_stays_and_a_damaged_one_is_none(tmp_path):
    cache = StageCache(tmp_path, most=2)
    cache.save("a", {"n": 1}, {"x": np.zeros(2)})
    cache.save("a", {"n": 2}, {"x": np.zeros(2)})
    assert cache.load("a").state == {"n": 1}
    [path] = (tmp_path / "a").glob("*/variables.npz")
    path.write_bytes(path.read_bytes()[:-10])
    assert cache.load("a") is None


def test_a_cache_of_none_keeps_none(tmp_path):
    cache = StageCache(tmp_path / "none", most=0)
    cache.save("a", {}, {})
    assert cache.load("a") is None and not (tmp_path / "none").exists()
