"""Preparation in shards gives what preparation in memory gives."""

import numpy as np
import polars as pl
import pytest

from tfcsmf.baselines.popularity import popularity
from tfcsmf.config import Config
from tfcsmf.data.funnel import with_later_events
from tfcsmf.data.prepare import prepare
from tfcsmf.data.query_rows import group_examples
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.sharded.pieces import shards_of
from tfcsmf.errors import DataError

OBJECTIVES = ["view", "cart", "buy"]
PARTS = {"train", "evaluation"}


def write_events(folder, seed=0, size=900, users=30, items=25, columns=()):
    """Random events in two files of several row groups, some of them repeated."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers((users, items, 4, 40), size=(size, 4))
    frame = pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in drawn[:, 0]],
            "item_id": pl.Series(drawn[:, 1]),
            "event": [(*OBJECTIVES, "like")[e] for e in drawn[:, 2]],
            "timestamp": drawn[:, 3],
            "split": rng.choice(["Train", "train", "valid", "test"], size),
        }
    )
    frame = frame.drop("split", "timestamp").with_columns(
        frame[name] for name in columns
    )
    folder.mkdir(exist_ok=True)
    frame = pl.concat([frame, frame.head(size // 5)])
    for number in range(2):
        part = frame[number::2]
        part.write_parquet(folder / f"{number}.parquet", row_group_size=111)
    return str(folder)


def config_of(events, **data):
    return Config.from_dict(
        {
            "data": {"events": events, **data},
            "cascade": {"objectives": OBJECTIVES},
            "towers": {"history_times": True, "query_encoder": "merged"},
        }
    )


def assert_equal(one, other, where=""):
    """Compares trees of arrays."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_equal(getattr(one, name), getattr(other, name), f"{where}.{name}")
    elif isinstance(one, np.ndarray):
        assert one.shape == other.shape and (one == other).all(), where
    else:
        assert one == other, where


def assert_same_log(stored, log):
    """What was read from a folder is what was prepared in memory."""
    for name in log.objectives:
        assert (stored.item_counts(name) == log.item_counts(name)).all()
    log = with_later_events(log)
    for name in log.objectives:
        found = stored.whole.targets[name]
        items = group_examples(log.train[name]).items
        assert (found == np.bincount(items, minlength=log.items.size)).all()
        wanted = popularity(log, name)
        assert (stored.whole.popularity[name] == wanted).all()
    assert (stored.users_here == np.arange(log.users.size)).all()
    stored = with_later_events(stored)
    for name in ("objectives", "history_events", "validation", "known"):
        assert_equal(getattr(stored, name), getattr(log, name), name)
    for name in ("users", "items"):
        one, other = getattr(stored, name), getattr(log, name)
        assert one.ids.tolist() == other.ids.tolist() and one.trained == other.trained
        assert [e.to_dict() for e in one.encoders] == [
            e.to_dict() for e in other.encoders
        ]
        assert_equal(one.features, other.features, name)
        assert_equal(one.buckets, other.buckets)
        assert one.num_rows == other.num_rows
    for name in log.objectives:
        rows, expected = (group_examples(part.train[name]) for part in (stored, log))
        assert_equal(rows, expected, name)
        # Histories of test queries: those of users without any are not stored.
        queries, wanted = stored.test[name], log.test[name]
        for field in ("users", "targets", "seen", "met"):
            assert_equal(getattr(queries, field), getattr(wanted, field), field)
    for histories in ("train_histories", "test_histories"):
        one, other = getattr(stored, histories), getattr(log, histories)
        users = np.arange(log.users.size)
        if histories == "test_histories":
            users = np.unique(np.concatenate([s.users for s in log.test.values()]))
        for number, (event, lists) in enumerate(other.lists.items()):
            for user in users:
                mine, theirs = one.lists[event], lists
                assert mine.row(user).tolist() == theirs.row(user).tolist()
                if other.times is not None:
                    first, last = mine.offsets[user : user + 2]
                    begin, end = theirs.offsets[user : user + 2]
                    assert (
                        one.times[event][first:last] == other.times[event][begin:end]
                    ).all()
            if histories == "test_histories":
                for name in log.objectives:
                    queries, wanted = stored.test[name], log.test[name]
                    ends = queries.history_end[:, number]
                    assert (
                        ends - one.lists[event].offsets[queries.users]
                        == wanted.history_end[:, number] - lists.offsets[wanted.users]
                    ).all()
    # A summary read back from JSON.
    left_out = log.summary["features_left_out"]
    assert stored.summary == log.summary | {"features_left_out": left_out}


HASHED = {"hash_buckets": 5}
CASES = {
    "time": (("timestamp",), {"split": "time", "test_share": 0.2}),
    "file": (("timestamp", "split"), {"validation_users": 7}),
    "file, no time": (("split",), {"validation_users": 0}),
    "last": (("timestamp",), {"split": "leave_last_out", "min_count": 20, **HASHED}),
    "random": ((), {"validation_share": 0.5}),
    "all test": ((), {"split": "random", "test_share": 0.9999999}),
    "other histories": (
        ("timestamp",),
        {"split": "leave_last_out", "history_events": ["like", "view"]},
    ),
}


QUICK = ("time", "random", "all test", "last")


@pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_shards_hold_what_preparation_in_memory_gives(case, tmp_path):
    columns, data = CASES[case]
    config = config_of(write_events(tmp_path / "log", columns=columns), **data)
    log = prepare(config)
    prepare_sharded(config, tmp_path / "out", shards=7)
    assert_same_log(PreparedFolder.open(tmp_path / "out").read(), log)
    # Nothing but the result is left.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("train", "evaluation", "prepared.json", "counts.npz"),
        *("users.npz", "users.parquet", "items.npz", "items.parquet"),
    }


def test_a_user_is_always_in_the_same_shard():
    # As a number that other versions and machines have to give too.
    users = pl.Series(["u1", "ü2", "u1", "u3"])
    assert shards_of(users, 1000).to_list() == [632, 938, 632, 351]


def test_rules_of_the_log_are_checked(tmp_path):
    events = write_events(tmp_path / "log", columns=("timestamp",))
    frame = pl.read_parquet(tmp_path / "log" / "1.parquet")

    def refused(message, frame=frame, name="1.parquet", **data):
        frame.write_parquet(tmp_path / "log" / name)
        with pytest.raises(DataError, match=message):
            prepare_sharded(config_of(events, **data), tmp_path / "out", 3)
        assert not (tmp_path / "out" / "prepared.json").exists()

    some = pl.int_range(pl.len()) == 5
    empty = pl.when(~some).then(pl.col("event")).alias("event")
    refused("rows without one.*row 545 of the log", frame.with_columns(empty))
    refused("whole numbers, dates", frame.cast({"timestamp": pl.Float64}))
    refused("a column 'item_id'", frame.drop("item_id"))
    refused("vieww.*'view'", frame, history_events=["vieww"])
    refused("split column", split="file")
    refused("a column 'when'", columns={"time": ["when"]})
    refused("a column 'part'", columns={"split": "part"})
    one = write_events(tmp_path / "one", items=1)
    with pytest.raises(DataError, match="two items"):
        prepare_sharded(config_of(one), tmp_path / "out", 3)
    with pytest.raises(DataError, match="has none"):
        PreparedFolder.open(tmp_path)
    # What a failed preparation has left is in nobody's way, a finished one is.
    assert {path.name for path in (tmp_path / "out").iterdir()} == PARTS
    stale = tmp_path / "out" / "train" / "00009.tfrecord"
    stale.touch()
    prepare_sharded(config_of(events), tmp_path / "out", 3)
    assert not stale.exists()
    for folder in (tmp_path / "out", tmp_path / "log"):
        with pytest.raises(DataError, match="another --output"):
            prepare_sharded(config_of(events), folder)
    (tmp_path / "log" / "a.csv").write_text("user_id,item_id,event")
    with pytest.raises(DataError, match="Parquet"):
        prepare_sharded(config_of(events), tmp_path / "other")


def test_dates_that_only_folders_name(tmp_path):
    for day in range(1, 9):
        folder = tmp_path / "log" / f"date=2024-01-0{day}"
        folder.parent.mkdir(exist_ok=True)
        write_events(folder, seed=day, size=120)
    config = config_of(str(tmp_path / "log"))
    prepare_sharded(config, tmp_path / "out")
    log = prepare(config)
    assert log.summary["split"] == "time"
    assert_same_log(PreparedFolder.open(tmp_path / "out").read(), log)


def test_features_and_cold_entities_are_those_of_the_side_tables(tmp_path, caplog):
    events = write_events(tmp_path / "log", columns=("timestamp",))
    items = pl.DataFrame(
        {
            "item_id": ["3", "99", "1"],
            "price": [1.5, None, 2.0],
            "tag": ["a", "b", None],
        }
    )
    users = pl.DataFrame({"user_id": ["u2", "nobody"], "age": [3, 4]})
    items.write_parquet(tmp_path / "items.parquet")
    users.write_csv(tmp_path / "users.csv")
    config = config_of(
        events,
        items=str(tmp_path / "items.parquet"),
        users=str(tmp_path / "users.csv"),
        ignore=["tag"],
    )
    prepare_sharded(config, tmp_path / "out")
    said = [m for m in caplog.messages if "have no row in the" in m]
    assert ["users table" in m for m in said] == [True, False]
    folder = PreparedFolder.open(tmp_path / "out")
    assert folder.shards == [0]
    assert_same_log(folder.read(), prepare(config))


@pytest.mark.parametrize("rows", [[("u", "a", "view", 1), ("u", "b", "view", 2)] * 3])
def test_one_user(rows, tmp_path):
    columns = ["user_id", "item_id", "event", "timestamp"]
    pl.DataFrame(rows, columns, orient="row").write_parquet(tmp_path / "e.parquet")
    tree = {"data": {"events": str(tmp_path / "e.parquet"), "split": "leave_last_out"}}
    config = Config.from_dict(tree | {"cascade": {"objectives": ["view"]}})
    prepare_sharded(config, tmp_path / "out", shards=4)
    folder = PreparedFolder.open(tmp_path / "out")
    assert len(folder.shards) == 1
    log = folder.read()
    assert_same_log(log, prepare(config))
    assert log.summary["duplicates_dropped"] == 4
    assert len(log.test["view"].users) == 0  # fewer than three events
