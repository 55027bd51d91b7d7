"""The event log: normalisation, and one test per rule."""

import datetime
from decimal import Decimal

import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data.log import load_log
from tfcsmf.data.scalars import as_text, as_times
from tfcsmf.errors import DataError

DAY = 86_400_000_000  # microseconds
BASE = {
    "user_id": ["u", "u", "v"],
    "item_id": ["a", "b", "a"],
    "event": ["view", "buy", "view"],
}


def load(tmp_path, events, items=None, users=None, objectives=("view",), **data):
    tree = {"data": data, "cascade": {"objectives": objectives}}
    for name, table in (("events", events), ("items", items), ("users", users)):
        if table is not None:
            pl.DataFrame(table).write_parquet(tmp_path / f"{name}.parquet")
            data[name] = str(tmp_path / f"{name}.parquet")
    return load_log(Config.from_dict(tree))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 2], ["1", "2"]),
        ([12.0, 1.5, float("nan")], ["12", "1.5", None]),
        ([Decimal(10**19 + 1), Decimal(-10)], ["10000000000000000001", "-10"]),
        ([Decimal("12.00"), Decimal("100.50"), None], ["12", "100.5", None]),
        ([True, None], ["true", None]),
        (["", "ü b"], [None, "ü b"]),
        ([datetime.date(2024, 1, 2)], ["2024-01-02"]),
    ],
)
def test_as_text(values, texts):
    assert as_text(pl.Series("x", values)).to_list() == texts


@pytest.mark.parametrize(
    ("values", "times"),
    [
        ([5, -1], [5, -1]),
        ([5.0, None], [5, None]),
        ([0.5, 2.0], [500_000, 2_000_000]),
        ([datetime.date(1970, 1, 3)], [2 * DAY]),
        ([datetime.datetime(1970, 1, 2, 0, 0, 1)], [DAY + 1_000_000]),
        (["7", "8"], [7, 8]),
        (
            ["1970-01-02", "1970-01-02T00:00:01Z", "1970-01-02 02:00:00+02:00", "no"],
            [DAY, DAY + 1_000_000, DAY, None],
        ),
        (
            ["1970-01-02 00:00:01 UTC", "1970-01-02T00:00:01.5UTC"],
            [DAY + 1_000_000, DAY + 1_500_000],
        ),
    ],
)
def test_as_times(values, times):
    assert as_times(pl.Series("t", values)).to_list() == times


def test_mapping_casting_and_first_time_column(tmp_path):
    log = load(
        tmp_path,
        {"uid": [1.0, 2.0], "sku": [7, 8], "what": ["view", "view"], "date": ["3", "1"]}
        | {"position": [0, 0], "Split": [" Train", "VAL"]},
        columns={"user_id": "uid", "item_id": "sku", "event": "what"}
        | {"split": "Split"},
    )
    assert log.events.rows() == [
        ("1", "7", "view", "train", 3),
        ("2", "8", "view", "valid", 1),
    ]
    assert log.time_column == "date"


def test_duplicates_and_absent_entities_are_counted(tmp_path):
    events = {name: values + values[:1] for name, values in BASE.items()}
    log = load(tmp_path, events, items={"item_id": ["b", "c"]})
    assert log.events.height == 3
    assert log.summary["duplicates_dropped"] == 1
    assert log.summary["entities_without_features"] == {"items": 1}


def test_a_table_of_other_ids_is_a_warning(tmp_path, caplog):
    load(tmp_path, BASE, items={"item_id": ["b", "c"]})  # half of them are there
    assert not caplog.messages
    load(tmp_path, BASE, items={"item_id": ["SKU-a", "SKU-b"]})
    (message,) = caplog.messages
    assert "2 of the 2 items" in message and "'SKU-a'" in message


@pytest.mark.parametrize(
    ("events", "data", "message"),
    [
        (
            {"usr_id": ["u"], "item_id": ["a"], "event": ["view"]},
            {},
            "Did you mean 'usr_id'.*--set data.columns.user_id=",
        ),
        (
            BASE | {"event": ["View", "buy", "View"]},
            {},
            r"Did you mean 'View'.*'View' \(2\), 'buy' \(1\)",
        ),
        (BASE | {"user_id": ["u", None, None]}, {}, "2 rows .*first rows: 1, 2 "),
        (BASE | {"item_id": ["u", "", "b"]}, {}, "'item_id'.*1 rows .*: 1 "),
        (BASE | {"event": ["view", None, "buy"]}, {}, "'event'.* 1 rows"),
        (BASE | {"item_id": [["a"], ["a"], ["b"]]}, {}, "single values"),
        (BASE | {"date": ["2024-01-01", "soon", None]}, {}, r"1 \('soon'\), 2 \(None"),
        (BASE | {"date": [[1], [1], [2]]}, {}, "time column 'date' should hold"),
        (BASE | {"split": ["train", "tset", "test"]}, {}, "'tset'.*mean 'test'"),
        (BASE | {"split": ["train", None, "test"]}, {}, "'split'.* 1 rows"),
        (BASE, {"columns": {"split": "fold"}}, "data.columns.split=<column>"),
        (BASE, {"columns": {"time": ["when"]}}, "data.columns.time="),
        (BASE, {"history_events": ["veiw"]}, "history_events.*mean 'view'"),
    ],
)
def test_broken_events(tmp_path, events, data, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, events, **data)


def test_split_values_do_not_matter_when_unused(tmp_path):
    events = BASE | {"split": ["a", "b", "c"]}
    assert "split" not in load(tmp_path, events, split="random").events.columns


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": ["a", "b", "a"]}, "1 ids, for example 'a'"),
        ({"item_id": ["a", None]}, "items table should hold an id"),
        ({"itemid": ["a"]}, "items table should have a column 'item_id'.*'itemid'"),
    ],
)
def test_broken_item_table(tmp_path, items, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, BASE, items=items)


def test_side_tables_need_a_log(tmp_path):
    with pytest.raises(DataError, match="needs an event log"):
        load(tmp_path, None, users={"user_id": ["u"]})
