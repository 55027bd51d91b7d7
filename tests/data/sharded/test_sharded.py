"""Preparation in shards gives what preparation in memory gives."""

import numpy as np
import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.query_rows import group_examples
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded

OBJECTIVES = ["view", "cart", "buy"]


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
    for name in ("objectives", "history_events", "validation", "known"):
        assert_equal(getattr(stored, name), getattr(log, name), name)
    for name in ("users", "items"):
        one, other = getattr(stored, name), getattr(log, name)
        assert one.ids.tolist() == other.ids.tolist() and one.trained == other.trained
        assert [e.to_dict() for e in one.encoders] == [
            e.to_dict() for e in other.encoders
        ]
        assert_equal(one.features, other.features, name)
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


CASES = {
    "time": (("timestamp",), {"split": "time", "test_share": 0.2}),
    "file": (("timestamp", "split"), {"validation_users": 7}),
    "file, no time": (("split",), {"validation_users": 0}),
    "last": (("timestamp",), {"split": "leave_last_out", "min_count": 20}),
    "random": ((), {"validation_share": 0.5}),
    "all test": ((), {"split": "random", "test_share": 0.9999999}),
    "other histories": (
        ("timestamp",),
        {"split": "leave_last_out", "history_events": ["like", "view"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shards_hold_what_preparation_in_memory_gives(case, tmp_path):
    columns, data = CASES[case]
    config = config_of(write_events(tmp_path / "log", columns=columns), **data)
    log = prepare(config)
    prepare_sharded(config, tmp_path / "out", shards=7)
    assert_same_log(PreparedFolder.open(tmp_path / "out").read(), log)
    # Nothing but the result is left.
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("train", "evaluation", "prepared.json", "targets.npz"),
        *("users.npz", "users.parquet", "items.npz", "items.parquet"),
    }
