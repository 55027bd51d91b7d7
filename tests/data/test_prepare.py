"""Preparation end to end: literal logs, leaks, schema, edge cases, real files."""

import json
import pathlib

import numpy as np
import polars as pl
import pytest

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.rows import MISSING, NO_TIME, NUM_RESERVED, UNKNOWN
from tfcsmf.data.schema import load_schema, save_schema
from tfcsmf.errors import DataError

SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
COLUMNS = ["user_id", "item_id", "event", "timestamp"]


def config_of(tmp_path, rows, columns, objectives, items=None, users=None, **data):
    for name, table in (("events", rows), ("items", items), ("users", users)):
        if table is not None:
            schema = columns if name == "events" else None
            frame = pl.DataFrame(table, schema=schema, orient="row" if schema else None)
            frame.write_parquet(tmp_path / f"{name}.parquet")
            data[name] = str(tmp_path / f"{name}.parquet")
    return Config.from_dict({"data": data, "cascade": {"objectives": objectives}})


def named(table, positions):
    return [table.ids[position] for position in positions]


def rows_of(log, csr):
    return [named(log.items, csr.row(row)) for row in range(len(csr.offsets) - 1)]


TIMED = [
    ("u", "a", "view", 1),
    ("u", "b", "view", 2),
    ("u", "a", "view", 2),  # the same item later: stays
    ("u", "b", "buy", 2),
    ("v", "a", "view", 1),
    ("v", "a", "view", 1),  # identical: dropped
    ("u", "c", "view", 3),  # validation day
    ("v", "b", "view", 3),
    ("u", "b", "buy", 3),
    ("u", "d", "view", 4),  # test day; d is cold
    ("u", "a", "buy", 4),
    ("v", "c", "view", 4),
]


def test_literal_log_split_by_time(tmp_path):
    log = prepare(config_of(tmp_path, TIMED, COLUMNS, ["view", "buy"], test_share=0.3))
    assert log.summary["split"] == "time" and log.summary["duplicates_dropped"] == 1
    assert log.users.ids.tolist() == ["u", "v"] and log.users.trained == 2
    # Training events: a 3, b 2; then ids in order.
    assert log.items.ids.tolist() == ["a", "b", "c", "d"] and log.items.trained == 2
    assert log.items.id_rows.tolist() == [3, 4, UNKNOWN, UNKNOWN]
    view = log.train["view"]
    assert named(log.users, view.pairs.users) == ["u", "u", "u", "v"]
    assert named(log.items, view.pairs.items) == ["a", "b", "a", "a"]
    assert view.pairs.times.tolist() == [1, 2, 2, 1]
    lists = log.train_histories.lists
    assert rows_of(log, lists["view"]) == [["a", "b", "a"], ["a"]]
    assert rows_of(log, lists["buy"]) == [["b"], []]
    # Columns view, buy; ends are absolute: v's view list begins at 3.
    assert view.history_end.tolist() == [[0, 0], [1, 0], [1, 0], [3, 1]]
    assert log.train["buy"].history_end.tolist() == [[1, 0]]
    assert rows_of(log, log.known["view"]) == [["a", "b"], ["a"]]

    valid = log.validation["view"]
    assert named(log.users, valid.users) == ["u", "v"]
    assert rows_of(log, valid.targets) == [["c"], ["b"]]
    assert valid.history_end.tolist() == [[3, 1], [4, 1]]
    assert rows_of(log, valid.seen) == [["a", "b"], ["a"]]

    test = log.test["view"]
    assert rows_of(log, test.targets) == [["d"], ["c"]]
    assert rows_of(log, test.seen) == [["a", "b", "c"], ["a", "b"]]
    # c was met on the validation day, but has no trained row.
    histories = log.test_histories.lists
    assert rows_of(log, histories["view"]) == [["a", "b", "a"], ["a", "b"]]
    assert rows_of(log, histories["buy"]) == [["b", "b"], []]
    assert test.history_end.tolist() == [[3, 2], [5, 2]]
    assert rows_of(log, log.test["buy"].seen) == [["b"]]
    assert rows_of(log, log.test["buy"].met) == [["a", "b", "c"]]
    assert log.summary["events"]["view"]["cold_test_targets"] == 2


def test_query_time_is_the_earliest_target(tmp_path):
    rows = [
        ("u", "a", "buy", 5, "train"),
        ("u", "b", "buy", 1, "train"),
        ("u", "b", "view", 2, "train"),
        ("u", "c", "buy", 7, "test"),
        ("u", "d", "buy", 3, "test"),
        ("u", "d", "buy", 9, "test"),
    ]
    log = prepare(
        config_of(tmp_path, rows, [*COLUMNS, "split"], ["buy"], validation_users=0)
    )
    test = log.test["buy"]
    assert sorted(rows_of(log, test.targets)[0]) == ["c", "d"]
    assert rows_of(log, test.seen) == [["b"]]  # a was bought at 5, after 3
    assert rows_of(log, test.met) == [["b"]]
    assert test.history_end.tolist() == [[1]]
    assert len(log.validation["buy"].users) == 0


def test_without_time_everything_is_known(tmp_path):
    rows = [
        ("u", "a", "view", "train"),
        ("u", "a", "view", "train"),
        ("u", "b", "view", "train"),
        ("u", "b", "like", "train"),
        ("u", "c", "like", "test"),  # not an objective, but hidden by the file
        ("u", "c", "view", "test"),
    ]
    columns = ["user_id", "item_id", "event", "split"]
    log = prepare(
        config_of(tmp_path, rows, columns, ["view"], history_events=["view", "like"])
    )
    view = log.train["view"]
    assert (view.pairs.times == NO_TIME).all()
    assert view.history_end.tolist() == [[2, 1], [2, 1]]
    assert sorted(rows_of(log, log.test["view"].met)[0]) == ["a", "b"]
    assert "c" not in named(log.items, log.test_histories.lists["like"].items)


def _random_rows(rng, size=600, users=25, items=20, times=30):
    return [
        (f"u{u}", f"ï {i}", ("view", "cart", "buy all")[e], int(t))
        for u, i, e, t in rng.integers((users, items, 3, times), size=(size, 4))
    ]


OBJECTIVES = ["view", "cart", "buy all"]


def _last_time(rows):
    """Latest time of every (user, item, event)."""
    times = {}
    for user, item, event, time in rows:
        times.setdefault((user, item, event), []).append(time)
    return times


@pytest.mark.parametrize("split", ["time", "random", "leave_last_out"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_history_holds_the_future(tmp_path, split, seed):
    rows = _random_rows(np.random.default_rng(seed))
    log = prepare(config_of(tmp_path, rows, COLUMNS, OBJECTIVES, split=split))
    times = _last_time(rows)
    for name in OBJECTIVES:
        examples = log.train[name]
        pairs = examples.pairs
        assert len(pairs) > 0
        for row in range(0, len(pairs), 7):
            user, time = pairs.users[row], pairs.times[row]
            for column, event in enumerate(log.history_events):
                csr = log.train_histories.lists[event]
                begin, end = csr.offsets[user], examples.history_end[row, column]
                assert begin <= end <= csr.offsets[user + 1]
                for item in csr.items[begin:end]:
                    key = (log.users.ids[user], log.items.ids[item], event)
                    assert min(times[key]) < time
                # The prefix is complete: every training event of this kind
                # before the example, counted independently.
                mine = log.train[event].pairs
                before = (mine.users == user) & (mine.times < time)
                before &= mine.items < log.items.trained
                assert end - begin == before.sum()


@pytest.mark.parametrize("split", ["random", "leave_last_out"])
def test_carved_pairs_leave_all_of_training(tmp_path, split):
    rows = _random_rows(np.random.default_rng(7))
    log = prepare(config_of(tmp_path, rows, COLUMNS, OBJECTIVES, split=split))
    carved, trained = set(), set()
    for name in OBJECTIVES:
        queries = log.validation[name]
        assert len(queries.users) > 0
        for row, user in enumerate(queries.users):
            carved |= {(user, item) for item in queries.targets.row(row)}
        pairs = log.train[name].pairs
        trained |= set(zip(pairs.users, pairs.items, strict=True))
    assert not carved & trained
    # At test time they are known again.
    known = sum(len(csr.items) for csr in log.test_histories.lists.values())
    less = sum(len(csr.items) for csr in log.train_histories.lists.values())
    assert known > less


def test_same_seed_same_log(tmp_path):
    rows = _random_rows(np.random.default_rng(2))
    config = config_of(tmp_path, rows, COLUMNS, OBJECTIVES, split="random")
    first, second = prepare(config), prepare(config)
    for name in OBJECTIVES:
        np.testing.assert_array_equal(
            first.validation[name].targets.items, second.validation[name].targets.items
        )
        np.testing.assert_array_equal(
            first.train[name].pairs.items, second.train[name].pairs.items
        )


@pytest.mark.parametrize("split", ["random", "leave_last_out"])
def test_an_appended_objective_keeps_the_validation_pairs(tmp_path, split):
    rows = _random_rows(np.random.default_rng(5), size=1500, users=60, items=40)
    found = []
    for names in (OBJECTIVES[:2], OBJECTIVES):
        config = config_of(
            tmp_path, rows, COLUMNS, names, split=split,
            history_events=OBJECTIVES[:2], validation_users=20,
        )  # fmt: skip
        log = prepare(config)
        found.append(
            {
                (name, log.users.ids[user], log.items.ids[item])
                for name in OBJECTIVES[:2]
                for row, user in enumerate(log.validation[name].users)
                for item in log.validation[name].targets.row(row)
            }
        )
    # Nothing the first model trained on; one pair may go to the new objective.
    assert found[1] <= found[0] and len(found[0] - found[1]) <= 2
    assert len(found[0]) == 40


@pytest.mark.parametrize("missing", ["test", "validation"])
def test_an_objective_that_cannot_be_evaluated_is_named(tmp_path, caplog, missing):
    rows = [(f"u{n % 9}", f"i{n}", "view", "train") for n in range(90)]
    rows += [(f"u{n}", f"i{n + 9}", "buy", "train") for n in range(9)]
    rows += [("u0", "i1", event, "valid") for event in ("view", "buy")]
    if missing == "validation":  # nine pairs: a tenth of them is none
        rows = [row for row in rows if row[2:] != ("buy", "valid")]
        rows += [("u0", "i1", "buy", "test")]
    rows += [("u0", "i2", "view", "test")]
    config = config_of(tmp_path, rows, [*COLUMNS[:3], "split"], ["view", "buy"])
    prepare(config)
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(messages) == 1 and "'buy'" in messages[0]
    effect = {"test": "metrics will be missing", "validation": "early stopping"}
    assert effect[missing] in messages[0]


def test_schema_round_trip(tmp_path):
    rows = _random_rows(np.random.default_rng(4))
    items = {"item_id": ["ï 1", "ï 2"], "price": [1.0, 2.0], "tag": ["x", "y"]}
    config = config_of(tmp_path, rows, COLUMNS, ["view", "cart"], items=items)
    first = prepare(config)
    schema = json.loads(json.dumps(save_schema(first)))
    assert load_schema(schema).item_encoders == first.items.encoders

    # A later log: new entities, most frequent of all, and another objective.
    later = rows + [("new", f"x{n % 9}", "view", n % 30) for n in range(200)]
    items = {"item_id": ["ï 2", "x1"], "tag": ["y", "new"]}
    config = config_of(tmp_path, later, COLUMNS, OBJECTIVES, items=items)
    second = prepare(config, schema=schema)
    for old, new in ((first.users, second.users), (first.items, second.items)):
        assert new.trained == old.trained
        assert new.ids[: new.trained].tolist() == old.ids[: old.trained].tolist()
    assert second.history_events == ("view", "cart")
    assert second.items.encoders == first.items.encoders
    position = second.items.ids.tolist().index
    tags = second.items.features["tag"]
    assert tags[position("ï 2")] == NUM_RESERVED + 1
    assert tags[position("x1")] == UNKNOWN and tags[position("ï 1")] == MISSING
    assert (second.items.features["price"] == MISSING).all()
    assert second.items.id_rows[position("x1")] == UNKNOWN
    for csr in second.test_histories.lists.values():
        assert (csr.items < second.items.trained).all()
    with pytest.raises(DataError, match="key 'item_ids'"):
        load_schema({name: schema[name] for name in schema if name != "item_ids"})


def test_catalogue_is_the_union_and_min_count_applies(tmp_path):
    rows = [("u", "a", "view"), ("u", "b", "view"), ("v", "b", "view")]
    rows += [("v", "c", "skip")]  # neither objective nor history
    items = {"item_id": ["z", "b"], "colour": ["red", "blue"]}
    users = {"user_id": ["w"], "age": [30]}
    log = prepare(
        config_of(
            tmp_path,
            rows,
            COLUMNS[:3],
            ["view"],
            items,
            users,
            test_share=0,
            min_count=2,
        )
    )
    assert log.items.ids.tolist() == ["b", "a", "c", "z"] and log.items.trained == 1
    assert log.users.ids.tolist() == ["u", "v", "w"] and log.users.trained == 1
    # "colour" has no value twice, so all are unknown.
    assert log.items.features["colour"].tolist() == [
        UNKNOWN, MISSING, MISSING, UNKNOWN
    ]  # fmt: skip
    assert log.train["view"].pairs.items.tolist() == [1, 0, 0]
    assert log.train_histories.lists["view"].items.tolist() == [0, 0]
    assert len(log.test["view"].users) == 0
    assert log.test["view"].history_end.shape == (0, 1)


@pytest.mark.parametrize(
    "rows",
    [
        [("u", "a", "view")],
        [("u", item, "view") for item in "abc"],
        [(user, "a", "view") for user in "uvw"],
    ],
)
@pytest.mark.parametrize("split", ["auto", "leave_last_out"])
def test_tiny_logs(tmp_path, rows, split):
    log = prepare(config_of(tmp_path, rows, COLUMNS[:3], ["view"], split=split))
    assert len(log.train["view"].pairs) > 0
    total = sum(len(part["view"].users) for part in (log.validation, log.test))
    assert len(log.train["view"].pairs) + total == len(rows)


def test_objective_without_training_events(tmp_path):
    rows = [("u", "a", "view", "train"), ("u", "a", "buy", "test")]
    columns = ["user_id", "item_id", "event", "split"]
    config = config_of(tmp_path, rows, columns, ["view", "buy"])
    with pytest.raises(DataError, match="'buy' with data.split=file .*'test': 1"):
        prepare(config)


def test_validation_users_caps_queries(tmp_path):
    rows = [(f"u{n}", item, "view", part) for n in range(9)
            for item, part in (("a", "train"), ("b", "valid"))]  # fmt: skip
    columns = ["user_id", "item_id", "event", "split"]
    log = prepare(config_of(tmp_path, rows, columns, ["view"], validation_users=4))
    assert len(log.validation["view"].users) == 4
    assert len(log.train["view"].pairs) == 9  # the others stay out of training


def test_simulated_log():
    simulator = {"users": 60, "items": 40, "exposures_per_user": 30}
    log = prepare(Config.from_dict({"simulator": simulator}))
    assert log.summary["source"] == "simulator" and log.summary["split"] == "time"
    assert {e.name: e.kind for e in log.items.encoders}["image"] == "vector"
    assert log.items.features["image"].shape[0] == log.items.size


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the shared data sets beside the repository"
)
def test_taobao_unseen_queries():
    config = Config.from_dict(
        {
            "data": {"events": str(SHARED / "taobao" / "events.parquet")},
            "cascade": {"objectives": ["view", "cart", "buy"]},
        }
    )
    log = prepare(config)
    test = log.test["buy"]
    assert len(test.users) == 15_449
    target = test.users.astype(np.int64) * log.items.size + test.targets.items
    owners = np.repeat(test.users, np.diff(test.met.offsets)).astype(np.int64)
    met = owners * log.items.size + test.met.items
    # Counted independently when the data were described.
    assert (~np.isin(target, met)).sum() == 2_597
