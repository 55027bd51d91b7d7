"""Splits of tiny literal logs, computed by hand, and properties of carving."""

import numpy as np
import pytest

from tfcsmf.data import carving, splits
from tfcsmf.data.splits import DROPPED, HELD, TEST, TRAIN, VALID, CodedLog
from tfcsmf.errors import DataError


def coded(rows, num_objectives, split=None, timed=True):
    """Rows of (user, item, event, time)."""
    users, items, events, times = np.array(rows).T
    return CodedLog(
        users, items, events, times if timed else None, split, num_objectives
    )


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([10] * 10, 0.1, (9, 10)),
        ([10] * 10, 0.25, (7, 9)),  # two whole days at most each
        ([1, 1, 90, 90], 0.1, (3, 4)),  # one day at least
        ([5, 5], 0.5, (None, 2)),  # the first day stays training
        ([5, 5, 5], 0.0, (None, None)),
    ],
)
def test_time_boundaries(counts, share, expected):
    times = np.repeat(np.arange(1, len(counts) + 1), counts)
    assert splits.time_boundaries(times, share) == expected


def test_time_split_hides_other_events_too():
    # Objective 0 on days 1..4, another event (1) on the same days.
    rows = [(0, 0, event, day) for day in (1, 2, 3, 4) for event in (0, 1)]
    part = splits.assign(coded(rows, 1), "time", 0.25, 0)
    expected = [TRAIN, TRAIN, TRAIN, TRAIN, VALID, HELD, TEST, DROPPED]
    assert part.tolist() == expected


def test_file_split():
    given = np.array([TRAIN, VALID, TEST, TEST], np.int8)
    rows = [(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0), (0, 3, 1, 0)]
    part = splits.assign(coded(rows, 1, given, timed=False), "file", 0.1, 0)
    assert part.tolist() == [TRAIN, VALID, TEST, DROPPED]
    assert given.tolist() == [TRAIN, VALID, TEST, TEST]  # untouched


def test_leave_last_out_takes_the_last_by_time_then_by_row():
    rows = [
        (0, 0, 0, 9),  # last by time
        (0, 1, 0, 1),
        (0, 2, 0, 2),
        (1, 0, 0, 5),  # two events only: nothing held out
        (1, 1, 0, 6),
        (2, 0, 0, 3),
        (2, 1, 0, 3),
        (2, 2, 0, 3),  # a tie: the last row
        (2, 3, 1, 9),  # not an objective
    ]
    part = splits.assign(coded(rows, 1), "leave_last_out", 0.1, 0)
    assert np.flatnonzero(part == TEST).tolist() == [0, 7]
    assert (part == TRAIN).sum() == 7
    part = splits.assign(coded(rows, 1, timed=False), "leave_last_out", 0.1, 0)
    assert np.flatnonzero(part == TEST).tolist() == [2, 7]


def test_random_split_keeps_pairs_together():
    rng = np.random.default_rng(3)
    rows = [(u, i, e, 0) for u, i, e in rng.integers((20, 30, 3), size=(2000, 3))]
    log = coded(rows, 2, timed=False)
    part = splits.assign(log, "random", 0.2, 5)
    objective = log.is_objective
    test = set(log.pair_keys[part == TEST])
    assert not test & set(log.pair_keys[(part == TRAIN) & objective])
    assert (part[~objective] == TRAIN).all()
    # Each pair is drawn alone: binomial, within four standard deviations.
    pairs = len(set(log.pair_keys[objective]))
    assert abs(len(test) - 0.2 * pairs) < 4 * np.sqrt(pairs * 0.2 * 0.8)
    np.testing.assert_array_equal(part, splits.assign(log, "random", 0.2, 5))
    assert (part != splits.assign(log, "random", 0.2, 6)).any()


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_random_split_leaves_every_objective_a_training_pair(share):
    rows = [(0, 0, 0, 0), (0, 0, 1, 0), (0, 1, 1, 0), (1, 2, 2, 0)]
    for seed in range(30):
        part = splits.assign(coded(rows, 3, timed=False), "random", share, seed)
        assert set(np.array([0, 1, 1, 2])[part == TRAIN]) == {0, 1, 2}
        assert part[0] == part[1]  # one pair


def test_draws_are_uniform_and_independent_of_each_other():
    drawn = splits.draw(3, np.arange(300)[:, np.newaxis], np.arange(300))
    counts, _ = np.histogram(drawn, 10, (0, 1))
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded once in a thousand.
    assert ((counts - 9000) ** 2 / 9000).sum() < 27.9
    for other in (splits.draw(4, np.arange(300)[:, np.newaxis], np.arange(300)),
                  drawn.T, np.roll(drawn, 1, 0), np.roll(drawn, 1, 1)):  # fmt: skip
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 4 / 300
    keys = splits.stable_keys(["u", "ï 1", "u1"])
    np.testing.assert_array_equal(splits.stable_keys(["ï 1", "u"]), keys[[1, 0]])


@pytest.mark.parametrize("method", ["random", "leave_last_out", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_another_objective_redraws_no_validation_pair(method, seed):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers((60, 25, 3), size=(900, 3)), axis=0)
    parts = []
    for count in (2, 3):
        rng = np.random.default_rng(seed)
        log = coded([(*row, 0) for row in rng.permutation(rows)], count, timed=False)
        part = np.full(len(rows), TRAIN, np.int8)
        if method != "none":
            part = splits.assign(log, method, 0.1, seed)
        parts.append(carving.carve(log, part, range(count), 25, 0.2, seed))
    old = log.events < 2
    for value in (TEST, VALID):
        before, after = (set(np.flatnonzero(old & (p == value))) for p in parts)
        assert after <= before and bool(before) == (value == VALID or method != "none")
        # One pair is kept for the new objective.
        assert len(before - after) <= (2 if value == VALID else 0)


def test_other_users_redraw_no_pair_of_a_user():
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers((400, 40, 2), size=(4000, 3)), axis=0)
    found = []
    for users in (np.arange(200), np.arange(400)):
        code = np.full(400, -1)
        code[users] = rng.permutation(len(users))  # codes depend on who is there
        keys = np.zeros(len(users), np.int64)
        keys[code[users]] = users
        some = rows[code[rows[:, 0]] >= 0]
        log = CodedLog(
            code[some[:, 0]], some[:, 1], some[:, 2], None, None, 2,
            (keys, np.arange(40), np.arange(2)),
        )  # fmt: skip
        part = splits.assign(log, "random", 0.1, 7)
        part = carving.carve(log, part, [0, 1], 10**6, 0.05, 7)
        found.append(
            {
                value: {tuple(row) for row in some[part == value] if row[0] < 200}
                for value in (TEST, VALID)
            }
        )
    assert found[0][TEST] == found[1][TEST]
    before, after = (
        {(user, event): item for user, item, event in sets[VALID]} for sets in found
    )
    shared = before.keys() & after.keys()
    assert len(shared) > 0.5 * len(before)
    assert all(before[key] == after[key] for key in shared)


@pytest.mark.parametrize(
    ("split", "times", "column", "method"),
    [
        ([TRAIN, TEST], [1, 2], "date", "file"),
        (None, [1, 2], "date", "time"),
        (None, [1, 2], "position", "leave_last_out"),
        (None, [1, 1], "date", "random"),
        (None, None, None, "random"),
    ],
)
def test_auto(split, times, column, method):
    rows = [(0, 0, 0, 0), (0, 1, 0, 0)]
    base = coded(rows, 1, None if split is None else np.array(split, np.int8))
    times = None if times is None else np.array(times)
    log = CodedLog(base.users, base.items, base.events, times, base.split, 1)
    assert splits.choose_method("auto", log, column) == method


def test_methods_without_their_column():
    log = coded([(0, 0, 0, 1), (0, 1, 0, 1)], 1)
    with pytest.raises(DataError, match="needs a split column"):
        splits.choose_method("file", log, "date")
    with pytest.raises(DataError, match="two or more distinct times. Received: 1"):
        splits.choose_method("time", log, "date")


@pytest.mark.parametrize("seed", range(5))
def test_carving(seed):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers((30, 15, 4), size=(500, 3)), axis=0)
    log = coded([(*row, 0) for row in rows], 3, timed=False)
    before = np.where(rng.random(len(rows)) < 0.1, TEST, TRAIN).astype(np.int8)
    part = carving.carve(log, before, [0, 1, 2], most_users=10, share=0.2, seed=seed)
    keys = log.pair_keys
    assert (part[before == TEST] == TEST).all()
    for code in range(3):
        mine = (log.events == code) & (part == VALID)
        pairs = len(np.unique(keys[(log.events == code) & (before == TRAIN)]))
        assert len(np.unique(log.users[mine])) == mine.sum()
        assert 0 < mine.sum() <= min(10, int(0.2 * pairs))
        assert ((log.events == code) & (part == TRAIN)).any()
    # A carved pair has left training altogether ...
    assert not set(keys[part == VALID]) & set(keys[part == TRAIN])
    # ... nothing else has ...
    assert set(keys[part == HELD]) <= set(keys[part == VALID])
    # ... and every user keeps something.
    assert set(log.users[part == VALID]) <= set(log.users[part == TRAIN])


def test_carving_spares_the_last_pair_of_an_objective_and_of_a_user():
    # User 0 has two views; user 1 one view; user 0's only buy is of item 0.
    rows = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 2, 0, 0), (0, 0, 1, 0)]
    log = coded(rows, 2, timed=False)
    part = np.full(4, TRAIN, np.int8)
    for seed in range(10):
        carved = carving.carve(log, part, [0, 1], 5, 0.9, seed)
        assert carved.tolist() == [TRAIN, VALID, TRAIN, TRAIN]
    assert carving.carve(log, part, [0, 1], 0, 0.9, 0).tolist() == part.tolist()


@pytest.mark.parametrize("alone", [True, False])
def test_carving_takes_pairs_of_the_kind_that_test_has(alone):
    # Of every user's ten buys, five are of items that were viewed too.
    rows = [(u, i, 0, 0) for u in range(8) for i in range(5)]
    rows += [(u, i, 1, 0) for u in range(8) for i in range(10)]
    part = [TRAIN] * len(rows)
    # And one in test, by itself or with a view.
    rows += [(u, 10, 1, 0) for u in range(8)]
    rows += [] if alone else [(u, 10, 0, 0) for u in range(5)]
    part += [TEST] * (len(rows) - len(part))
    log = coded(rows, 2, timed=False)
    before, found = np.array(part, np.int8), []
    for seed in range(3):
        part = carving.carve(log, before, [1], 8, 0.5, seed)
        viewed = log.items[part == VALID] < 5
        assert len(viewed) == 8
        found.append(viewed.any())
    assert any(found) != alone
    # Met in training is seen, whatever test has of it.
    seen = np.append(before, [TRAIN] * 8).astype(np.int8)
    log = coded([*rows, *((u, 10, 0, 0) for u in range(8))], 2, timed=False)
    found = [carving.carve(log, seen, [1], 8, 0.5, seed) for seed in range(3)]
    assert any((log.items[part == VALID] < 5).any() for part in found)
