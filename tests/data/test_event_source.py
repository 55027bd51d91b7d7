"""Reading in batches gives what reading at once gives."""

import numpy as np
import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data import event_source
from tfcsmf.data.event_source import EventSource, categories, distinct_events
from tfcsmf.data.log import load_log
from tfcsmf.data.reader import scan_table
from tfcsmf.errors import DataError


def _log(rows=500):
    rng = np.random.default_rng(3)
    users = pl.Series(rng.integers(20, size=rows)).cast(pl.String)
    return pl.DataFrame(
        {
            "user_id": "u" + users,
            "item_id": rng.integers(15, size=rows),
            "event": rng.choice(["view", "cart", "buy"], size=rows),
            "split": rng.choice([" Train", "VAL", "test"], size=rows),
            "timestamp": rng.integers(9, size=rows),
        }
    )


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(event_source, "_BATCH", 7)
    monkeypatch.setattr(event_source, "_TOGETHER", 60)


def _expected(log):
    """The log in one piece: repeated rows dropped, names as text."""
    parts = {" Train": "train", "VAL": "valid", "test": "test"}
    log = log.unique(maintain_order=True, keep="first")
    return log.with_columns(
        pl.col("item_id").cast(pl.String), pl.col("split").replace_strict(parts)
    ).rows()


def test_batches_of_several_files_make_one_log(tmp_path, small_batches):
    log = _log()
    for number, part in enumerate((log[:100], log[100:140], log[140:])):
        # As an id column is written by tools that chose types file by file.
        kind = pl.Int32 if number else pl.Int64
        part = part.with_columns(pl.col("item_id").cast(kind))
        part.write_parquet(tmp_path / f"{number}.parquet", row_group_size=30)
    tree = {"data": {"events": str(tmp_path)}, "cascade": {"objectives": ["view"]}}
    result = load_log(Config.from_dict(tree))
    assert result.events.rows() == _expected(log)
    assert result.summary["rows_read"] == 500
    assert result.summary["duplicates_dropped"] == 500 - result.events.height > 0


def test_rows_of_a_csv_are_the_same(tmp_path, small_batches):
    log = _log()
    log.write_csv(tmp_path / "log.csv")
    tree = {"data": {"events": str(tmp_path)}, "cascade": {"objectives": ["view"]}}
    assert load_log(Config.from_dict(tree)).events.rows() == _expected(log)


def test_codes_are_places_among_the_sorted_texts(small_batches):
    values = [12.0, None, 1.5, float("nan")] * 4
    names = EventSource(pl.LazyFrame({"id": values}), "memory").names("id")
    assert categories(names).to_list() == ["1.5", "12"]
    assert names.to_list() == ["12", None, "1.5", None] * 4


def test_distinct_rows_are_the_first_of_each_and_keep_their_order(small_batches):
    users = pl.Series(["b", "a", "b", "c", "a"] * 40).cast(pl.Enum(["a", "b", "c"]))
    times = pl.Series([1, 2, 1, None, 2] * 40)
    events = pl.DataFrame({"user_id": users, "time": times})
    assert distinct_events(events).rows() == [("b", 1), ("a", 2), ("c", None)]
    assert distinct_events(events.head(3)).rows() == [("b", 1), ("a", 2)]


def test_a_damaged_page_is_told_in_words(tmp_path):
    path = tmp_path / "log.parquet"
    _log(20_000).write_parquet(path, compression="uncompressed")
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # the first page; the footer stays whole
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="log.parquet' cannot be read: "):
        source = EventSource(scan_table(str(path), "events"), str(path))
        for name in source.columns:
            source.column(name)
            source.names(name)


def test_no_rows(tmp_path):
    path = tmp_path / "log.parquet"
    _log().head(0).write_parquet(path)
    with pytest.raises(DataError, match="should have rows"):
        load_log(Config.from_dict({"data": {"events": str(path)}}))
