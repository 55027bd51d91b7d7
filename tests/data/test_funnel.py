"""Positives from later objectives: which, where, and what they weigh."""

from dataclasses import replace

import numpy as np
import pytest

from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import with_later_events
from tfcsmf.data.lists import distinct_lists
from tfcsmf.data.prepared import Examples, Pairs
from tfcsmf.data.rows import NO_TIME, NUM_RESERVED


def log_of(tiny_log, events):
    """The log with other training events: per objective, (user, item, time) rows."""
    train, known = {}, {}
    for name, rows in events.items():
        users, items, times = np.array(rows, np.int64).reshape(-1, 3).T
        pairs = Pairs(users.astype(np.int32), items.astype(np.int32), times)
        ends = np.stack([100 * pairs.users + times, times], axis=1)
        train[name] = Examples(pairs, ends)
        known[name] = distinct_lists(
            pairs.users, pairs.items, tiny_log.users.size, tiny_log.items.size
        )
    return replace(tiny_log, train=train, known=known)


def listed(examples):
    pairs = examples.pairs
    columns = (pairs.users, pairs.items, pairs.times)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.fixture
def small(tiny_log):
    return log_of(
        tiny_log,
        {
            "exposure": [(0, 5, 1), (2, 5, 3)],
            "click": [(0, 5, 2), (0, 7, 4), (1, 5, 1)],
            "conversion": [(0, 2, 3), (0, 2, 9), (1, 5, 7), (2, 8, 1)],
        },
    )


def test_by_hand(small):
    joined = with_later_events(small, 3.0)
    # (0, 5) is exposed already; of a pair's later events the first objective's, and of
    # several of one objective the first, is taken, at its own time.
    assert listed(joined.train["exposure"]) == [
        (0, 5, 1), (0, 2, 3), (0, 7, 4), (1, 5, 1), (2, 8, 1), (2, 5, 3)
    ]  # fmt: skip
    # All but (2, 5) have a later event; the mean is 1.
    np.testing.assert_allclose(
        joined.train["exposure"].weights, np.array([3, 3, 3, 3, 3, 1]) * 6 / 16
    )
    # Histories end where they ended for the event that was taken.
    assert joined.train["exposure"].history_end[1].tolist() == [3, 3]
    assert joined.train["exposure"].history_end[4].tolist() == [201, 1]
    assert joined.known["exposure"].row(0).tolist() == [2, 5, 7]
    for name in ("click", "conversion"):
        assert joined.train[name] is small.train[name]
        assert joined.known[name] is small.known[name]


def test_nothing_changes_without_weight_or_later_objective(small):
    assert with_later_events(small, 0.0) is small
    alone = replace(small, objectives=("exposure",))
    assert with_later_events(alone, 4.0) is alone


def test_no_event_of_the_first_objective_is_lost(tiny_log):
    # Every click of the simulator is of an item shown before: nothing is added.
    joined = with_later_events(tiny_log, 1.0)
    assert listed(joined.train["exposure"]) == listed(tiny_log.train["exposure"])
    np.testing.assert_allclose(joined.train["exposure"].weights, 1.0)
    known = joined.known["exposure"], tiny_log.known["exposure"]
    np.testing.assert_array_equal(known[0].items, known[1].items)
    np.testing.assert_array_equal(known[0].offsets, known[1].offsets)


def test_held_out_pairs_stay_held_out(untimed_log):
    joined = with_later_events(untimed_log, 1.0)
    assert (untimed_log.train["click"].pairs.times == NO_TIME).all()
    part = joined.validation["exposure"]
    users = np.repeat(part.users, np.diff(part.targets.offsets)).tolist()
    held = set(zip(users, part.targets.items.tolist(), strict=True))
    pairs = joined.train["exposure"].pairs
    trained = set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
    assert held and not held & trained


@pytest.mark.parametrize("log", ["tiny_log", "untimed_log"])
def test_batches_weigh_each_positive_by_its_pair(log, request):
    log = request.getfixturevalue(log)
    joined = with_later_events(log, 3.0)
    settings = BatchSettings(16, 0, 0, 6, seed=1, whole_catalogue=100)
    batches = StageBatches(joined, "exposure", settings)
    later = set()
    for name in ("click", "conversion"):
        pairs = log.train[name].pairs
        later |= set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
    low, high = np.unique(joined.train["exposure"].weights)
    assert high == pytest.approx(3 * low)
    met = set()
    for batch in batches.dataset(1.0, 0, 0, 3):
        rows, columns = batch["positives"].numpy().T
        # Table rows of users count from the reserved ones.
        query = batch["rows"]["user_id"].numpy()[batch["query"]["user_id"].numpy()]
        users = query[rows] - NUM_RESERVED
        items = batch["items"].numpy()[columns]
        expected = [
            high if pair in later else low
            for pair in zip(users.tolist(), items.tolist(), strict=True)
        ]
        np.testing.assert_array_equal(batch["weight"], np.float32(expected))
        met |= set(expected)
    assert met == {low, high}
    # Other stages count all alike.
    other = StageBatches(joined, "click", settings).dataset(1.0, 0, 0, 1)
    assert "weight" not in next(iter(other))
