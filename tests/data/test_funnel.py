"""Positives from later objectives: which, where, and what they weigh."""

from dataclasses import replace

import numpy as np
import pytest

from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import joint_lessons, with_later_events
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
    joined = with_later_events(small)
    # (0, 5) is exposed already; of a pair's later events the first objective's, and of
    # several of one objective the first, is taken, at its own time.
    assert listed(joined.train["exposure"]) == [
        (0, 5, 1), (0, 2, 3), (0, 7, 4), (1, 5, 1), (2, 8, 1), (2, 5, 3)
    ]  # fmt: skip
    assert joined.train["exposure"].weights is None
    # Histories end where they ended for the event that was taken.
    assert joined.train["exposure"].history_end[1].tolist() == [3, 3]
    assert joined.train["exposure"].history_end[4].tolist() == [201, 1]
    assert joined.known["exposure"].row(0).tolist() == [2, 5, 7]
    for name in ("click", "conversion"):
        assert joined.train[name] is small.train[name]
        assert joined.known[name] is small.known[name]


def test_nothing_changes_without_a_later_objective(small):
    alone = replace(small, objectives=("exposure",))
    assert with_later_events(alone) is alone


def test_no_event_of_the_first_objective_is_lost(tiny_log):
    # Every click of the simulator is of an item shown before: nothing is added.
    joined = with_later_events(tiny_log)
    assert listed(joined.train["exposure"]) == listed(tiny_log.train["exposure"])
    known = joined.known["exposure"], tiny_log.known["exposure"]
    np.testing.assert_array_equal(known[0].items, known[1].items)
    np.testing.assert_array_equal(known[0].offsets, known[1].offsets)


def test_held_out_pairs_stay_held_out(untimed_log):
    joined = with_later_events(untimed_log)
    assert (untimed_log.train["click"].pairs.times == NO_TIME).all()
    part = joined.validation["exposure"]
    users = np.repeat(part.users, np.diff(part.targets.offsets)).tolist()
    held = set(zip(users, part.targets.items.tolist(), strict=True))
    pairs = joined.train["exposure"].pairs
    trained = set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
    assert held and not held & trained


def test_lessons_by_hand(small):
    lessons = joint_lessons(small, [1.0, 3.0, 3.0])
    examples = lessons.log.train["exposure"]
    assert listed(examples) == [
        *listed(small.train["exposure"]),
        *listed(small.train["click"]),
        *listed(small.train["conversion"]),
    ]
    assert lessons.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    np.testing.assert_allclose(
        examples.weights, np.array([1, 1, 3, 3, 3, 3, 3, 3, 3]) * 9 / 23
    )
    users = small.users.size
    known = lessons.log.known["exposure"]
    for label, name in enumerate(small.objectives):
        for user in range(users):
            wanted = small.known[name].row(user).tolist()
            assert known.row(label * users + user).tolist() == wanted
    for name in ("click", "conversion"):
        assert lessons.log.train[name] is small.train[name]


@pytest.mark.parametrize("log", ["tiny_log", "untimed_log"])
def test_rows_of_every_label_see_their_histories_and_weigh_what_they_should(
    log, request
):
    log = request.getfixturevalue(log)
    names = log.objectives
    lessons = joint_lessons(with_later_events(log), [1.0, 2.0, 2.0])
    settings = BatchSettings(
        64, 0, 0, 6, seed=1, whole_catalogue=100, target_share=0.5, visible_share=1.0
    )
    opening = {name: label for label, name in enumerate(names)}
    batches = StageBatches(
        lessons.log, names[0], settings, lessons.labels, names, opening
    )
    assert batches.num_examples == len(lessons.log.train[names[0]].pairs) - sum(
        len(log.train[name].pairs) for name in names[1:]
    )
    low, high = np.unique(lessons.log.train[names[0]].weights)
    assert high == pytest.approx(2 * low)
    shown = np.zeros((3, 3), int)  # entries by label, and event
    for batch in batches.dataset(1.0, 0, 0, batches.steps_per_epoch()):
        query = batch["rows"]["user_id"].numpy()[batch["query"]["user_id"].numpy()]
        rows, columns = batch["positives"].numpy().T
        users = query[rows] - NUM_RESERVED
        items = batch["items"].numpy()[columns]
        weights = batch["weight"].numpy()
        lengths = [
            batch["query"][f"history_{name}"].row_lengths().numpy() for name in names
        ]
        for row in range(len(query)):
            mine = rows == row
            (weight,) = set(weights[mine].tolist())
            entries = [length[row] for length in lengths]
            label = 0
            if weight == np.float32(high):
                pairs = set(
                    zip(users[mine].tolist(), items[mine].tolist(), strict=True)
                )
                label = 2 if pairs <= pairs_of(log.train[names[2]]) else 1
                assert pairs <= pairs_of(log.train[names[label]])
                # Both fit if all of a row's clicks became conversions.
                label = max(label, 2 * int(entries[2] > 0))
            assert not any(entries[label + 1 :])
            shown[label] += entries
    assert (np.diag(shown) > 0).all() and shown[2, 0] and shown[1, 0]


def pairs_of(examples):
    pairs = examples.pairs
    return set(zip(pairs.users.tolist(), pairs.items.tolist(), strict=True))
