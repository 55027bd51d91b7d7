"""What every data set shares: conversion once, checks, and messages that help."""

import json
import logging
import os

import polars as pl
import pytest

from tfcsmf.data.datasets import DATASETS, event_log
from tfcsmf.data.datasets.aliexpress import item_keys
from tfcsmf.errors import DataError

LINES = ["1,7,70,pv,1511544070", "1,7,70,buy,1511544071", "2,8,70,cart,1511544072"]


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path, LINES)
    return tmp_path


def _write(folder, lines):
    path = folder / "UserBehavior.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_conversion_is_made_once_and_again_when_a_source_changes(folder):
    first = event_log("taobao_userbehavior", folder)
    assert first.events.is_relative_to(folder / "tfcsmf-cache")
    made = first.events.stat().st_mtime_ns
    assert event_log("taobao_userbehavior", folder) == first
    assert first.events.stat().st_mtime_ns == made

    path = _write(folder, [*LINES, "3,9,71,pv,1511544073"])
    longer = event_log("taobao_userbehavior", folder)
    assert longer.events != first.events
    assert pl.read_parquet(longer.events).height == 4

    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert event_log("taobao_userbehavior", folder).events != longer.events


def test_the_source_is_written_beside_the_tables(folder, tmp_path):
    files = event_log("taobao_userbehavior", folder, tmp_path / "elsewhere")
    assert files.events.is_relative_to(tmp_path / "elsewhere")
    note = json.loads((files.events.parent / "source.json").read_text())
    assert note["dataset"] == "taobao_userbehavior"
    assert note["licence"] == "CC BY-NC-SA 4.0"
    assert note["rows"] == {"events": 3, "items": 2}
    assert note["events"] == {"buy": 1, "cart": 1, "pv": 1}
    (source,) = note["sources"]
    assert source["path"] == "UserBehavior.csv"
    assert source["bytes"] == sum(len(line) + 1 for line in LINES)
    assert {path.name for path in files.events.parent.parent.iterdir()} == {
        files.events.parent.name
    }


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,7,70,pv"], "the 5 fields user_id.* Received: 4 in the first line"),
        ([*LINES, "1,7,70,pv,soon"], "should be as published.*soon"),
        ([*LINES, "1,7,70,pv"], "should have a timestamp. Received: 1 of 4"),
        (["1,7,70,pv,12"], "should have events. Received: none"),
    ],
)
def test_malformed_files_leave_nothing_behind(tmp_path, lines, message):
    _write(tmp_path, lines)
    with pytest.raises(DataError, match=message):
        event_log("taobao_userbehavior", tmp_path)
    cache = tmp_path / "tfcsmf-cache"
    assert not cache.exists() or not list(cache.iterdir())


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    (tmp_path / "events.csv").write_text("timestamp,visitor_id,event,itemid\n1,2,x,3\n")
    with pytest.raises(DataError, match="'visitorid'. Did you mean 'visitor_id'"):
        event_log("retailrocket", tmp_path)


def test_files_far_from_the_published_size_are_warned_of(folder, caplog):
    with caplog.at_level(logging.WARNING):
        event_log("taobao_userbehavior", folder)
    assert "these files have: 1 'pv' (of 89,716,264), 1 'cart'" in caplog.text


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_files_are_told_with_where_to_get_them(name, tmp_path, monkeypatch):
    dataset = DATASETS[name]
    (tmp_path / "data.tar.gz").write_bytes(b"x")
    if dataset.fetch is not None:  # no download from a test
        message = "should lie in .*downloaded by tensorflow-datasets.*unpack ml-"
        import tensorflow_datasets as tfds

        def refuse(*args, **kwargs):
            raise OSError("no network")

        monkeypatch.setattr(tfds, "builder", refuse)
    else:
        message = "unpack data.tar.gz first"
    with pytest.raises(DataError, match=message) as error:
        event_log(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    if dataset.fetch is None:
        for layout in dataset.layouts:
            for file in layout.files:
                if file.required:
                    assert file.pattern.split("/")[-1] in str(error.value)
        assert dataset.homepage in str(error.value)
        assert dataset.licence in str(error.value)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        event_log("movielens_1m", tmp_path / "nowhere")


def test_parts_of_a_log_have_to_be_complete(tmp_path):
    (tmp_path / "log_standard_4_08_to_4_21_1k.csv").write_text("x\n")
    with pytest.raises(DataError, match=r"log_standard_\*_1k\*.csv"):
        event_log("kuairand_1k", tmp_path)


def test_names_are_registered_once_and_objectives_distinct():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert len(set(dataset.objectives)) == len(dataset.objectives) >= 1
        assert dataset.homepage.startswith("https://")


def test_item_keys_depend_on_every_value_and_its_column_and_on_nothing_else():
    columns = [pl.Series([3, 3, 4, 5]), pl.Series([0.5, 0.5, 0.5, 0.5])]
    keys = item_keys(columns).to_list()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    # Noise of reading and writing decimals does not count; the sixth place does.
    noisy = item_keys([columns[0], columns[1] + 1e-12])
    assert noisy.to_list() == keys
    assert item_keys([columns[0], columns[1] + 1e-6])[0] != keys[0]
    assert item_keys(columns[::-1])[0] != keys[0]
    # In another batch, another process, another version.
    assert item_keys([column[2:3] for column in columns]).to_list() == keys[2:3]
    assert item_keys([pl.Series([1]), pl.Series([0.0])])[0] == KEY


# SplitMix64 of 1, then of 0, computed with whole numbers by hand.
KEY = 6791897765849424158
