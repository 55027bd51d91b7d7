"""Examples by query: groups, targets, and what histories show of them."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcsmf.data.prepared import Examples, Pairs
from tfcsmf.data.query_rows import TargetChooser, group_examples
from tfcsmf.data.rows import NO_TIME

SIZE = 50


def examples(users, items, ends, times=None):
    users = np.array(users, np.int32)
    times = np.full(len(users), NO_TIME) if times is None else np.array(times)
    pairs = Pairs(users, np.array(items, np.int32), times)
    return Examples(pairs, np.array(ends, np.int64).reshape(len(users), -1))


def listed(rows):
    return [
        (int(user), *map(int, end), int(label), rows.items[start:stop].tolist())
        for user, end, label, start, stop in zip(
            rows.users,
            rows.history_end,
            rows.labels,
            rows.offsets,
            rows.offsets[1:],
            strict=False,
        )
    ]


def test_rows_by_hand():
    some = examples(
        [2, 1, 1, 1, 2, 1],
        [7, 5, 3, 5, 1, 4],
        [[9, 2], [4, 0], [4, 0], [4, 0], [9, 2], [4, 1]],
        [1, 2, 3, 2, 1, 5],
    )
    rows = group_examples(some)
    # The pair (1, 5) was there twice.
    assert listed(rows) == [
        (1, 4, 0, 0, [3, 5]),
        (1, 4, 1, 0, [4]),
        (2, 9, 2, 0, [1, 7]),
    ]
    assert rows.timed
    labels = np.array([0, 1, 0, 1, 0, 0], np.int32)
    assert listed(group_examples(some, labels)) == [
        (1, 4, 0, 0, [3]),
        (1, 4, 1, 0, [4]),
        (1, 4, 0, 1, [5]),
        (2, 9, 2, 0, [1, 7]),
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)),
        min_size=1,
        max_size=40,
    )
)
@settings(deadline=None, max_examples=50)
def test_rows_hold_exactly_the_examples(drawn):
    users, items, ends = zip(*drawn, strict=True)
    rows = group_examples(examples(users, items, ends))
    owners = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    got = list(
        zip(
            rows.users[owners],
            rows.items,
            rows.history_end[owners, 0],
            strict=True,
        )
    )
    assert len(got) == len(set(got)) and set(got) == set(drawn)
    keys = list(zip(rows.users, rows.history_end[:, 0], strict=True))
    assert len(keys) == len(set(keys))
    assert not rows.timed


def test_few_rows_per_user_by_hand():
    some = examples(
        [1, 1, 1, 1, 1, 2, 1],
        [7, 5, 3, 2, 1, 4, 6],
        [[9], [0], [1], [1], [2], [0], [5]],
        [90, 10, 20, 20, 30, 10, 50],
    )
    # Five times in two rows.
    assert listed(group_examples(some, rows_per_user=2)) == [
        (1, 0, 0, [1, 2, 3, 5]),
        (1, 5, 0, [6, 7]),
        (2, 0, 0, [4]),
    ]
    assert [row[:2] for row in listed(group_examples(some, rows_per_user=1))] == [
        (1, 0),
        (2, 0),
    ]
    assert listed(group_examples(some, rows_per_user=5)) == listed(group_examples(some))
    labels = np.array([0, 0, 1, 0, 1, 0, 1], np.int32)
    assert listed(group_examples(some, labels, rows_per_user=2)) == [
        (1, 0, 0, [2, 5]),
        (1, 9, 0, [7]),
        (1, 1, 1, [1, 3]),
        (1, 5, 1, [6]),
        (2, 0, 0, [4]),
    ]
    # Without times there is no next one.
    timeless = examples(some.pairs.users, some.pairs.items, some.history_end)
    assert listed(group_examples(timeless, rows_per_user=1)) == listed(
        group_examples(timeless)
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 8)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=50)
def test_no_example_of_a_row_is_in_its_histories(drawn, most):
    users, items, times = map(np.array, zip(*drawn, strict=True))
    order = np.lexsort((times, users))
    # What the user had done strictly before, numbered over all users.
    ends = [
        int(np.sum(users < user) + np.sum((users == user) & (times < time)))
        for user, time in zip(users, times, strict=True)
    ]
    rows = group_examples(examples(users, items, ends, times), rows_per_user=most)
    plain = group_examples(examples(users, items, ends, times))
    assert len(rows) <= len(plain)
    when, whose = times[order], users[order]
    found = listed(rows)
    for row, after in zip(found, [*found[1:], None], strict=True):
        # Everything from the end of the histories to where the next row begins.
        same = after is not None and after[0] == row[0]
        stop = after[1] if same else int(np.sum(users <= row[0]))
        taken = np.arange(row[1], stop)
        assert (whose[taken] == row[0]).all()
        assert row[-1] == sorted(set(items[order][taken].tolist()))
        moments = len(set(when[whose == row[0]]))
        assert len(set(when[taken])) <= -(-moments // most)
    assert max(np.bincount([row[0] for row in found])) <= most


def many(timed=False):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(6), [1, 2, 3, 8, 20, 40])
    items = np.concatenate([rng.choice(SIZE, n, replace=False) for n in (1, 2, 3, 8)])
    items = np.concatenate([items, np.arange(20), np.arange(40)])
    times = np.arange(len(users)) if timed else None
    return group_examples(examples(users, items, np.zeros(len(users)), times))


def choose(rows, share=0.5, visible=0.5, step=0, numbers=None, events=("buy",)):
    chooser = TargetChooser(rows, share, visible, events)
    numbers = np.arange(len(rows)) if numbers is None else numbers
    owners, slots, hidden = chooser(tf.constant(numbers), SIZE, tf.constant([3, step]))
    return owners, tf.gather(rows.items, slots), hidden


def test_targets_are_a_random_share_and_at_least_one():
    rows = many()
    counts = []
    for step in range(200):
        owners, items, _ = choose(rows, 0.3, step=step)
        owners, items = owners.numpy(), items.numpy()
        assert (np.diff(owners * SIZE + items) > 0).all()
        counts.append(np.bincount(owners, minlength=6))
        for row in range(6):
            part = rows.items[rows.offsets[row] : rows.offsets[row + 1]]
            assert np.isin(items[owners == row], part).all()
    counts = np.array(counts)
    assert (counts >= 1).all()
    sizes = np.diff(rows.offsets)
    expected = 0.3 * sizes + 0.7**sizes
    deviation = np.sqrt(0.21 * sizes / len(counts))
    assert (np.abs(counts.mean(axis=0) - expected) < 4 * deviation + 1e-9).all()
    assert rows.expected_targets(0.3) == pytest.approx(expected.mean())


@pytest.mark.parametrize(("timed", "share"), [(True, 0.5), (False, 1.0)])
def test_all_positives_are_targets_where_time_is_known_or_all_are_asked(timed, share):
    rows = many(timed)
    owners, items, _ = choose(rows, share)
    np.testing.assert_array_equal(items, rows.items)
    np.testing.assert_array_equal(np.bincount(owners), np.diff(rows.offsets))
    assert rows.expected_targets(share) == np.diff(rows.offsets).mean()


def test_targets_leave_the_history_of_their_event_and_a_share_of_the_others():
    rows = many()
    shown = []
    for step in range(50):
        owners, items, hidden = choose(rows, visible=0.25, step=step)
        assert not hidden.keeps("buy", owners, items).numpy().any()
        shown.append(hidden.keeps("view", owners, items).numpy())
        # Everything else stays in both.
        everything = tf.constant(np.repeat(np.arange(6), SIZE), tf.int64)
        positions = tf.constant(np.tile(np.arange(SIZE), 6), tf.int32)
        targets = np.zeros(6 * SIZE, bool)
        targets[owners.numpy() * SIZE + items.numpy()] = True
        for event in ("buy", "view"):
            kept = hidden.keeps(event, everything, positions).numpy()
            assert kept[~targets].all()
    shown = np.concatenate(shown)
    assert abs(shown.mean() - 0.25) < 4 * np.sqrt(0.1875 / len(shown))


def test_each_label_has_its_own_event():
    some = examples([0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0])
    rows = group_examples(some, np.array([0, 0, 1, 1], np.int32))
    owners, items, hidden = choose(rows, 1.0, 1.0, events=("view", "buy"))
    assert owners.numpy().tolist() == [0, 0, 1, 1]
    for event, expected in (
        ("view", [False, False, True, True]),
        ("buy", [True, True, False, False]),
        ("search", [True] * 4),
    ):
        assert hidden.keeps(event, owners, items).numpy().tolist() == expected


@pytest.mark.parametrize("timed", [False, True])
def test_what_comes_later_shows_no_target_unless_time_says_so(timed):
    some = examples([0, 0, 0], [1, 2, 3], [0, 0, 0], np.zeros(3) if timed else None)
    rows = group_examples(some)
    assert rows.timed == timed
    chooser = TargetChooser(rows, 1.0, 1.0, ("cart",), ("view", "cart", "buy"))
    owners, slots, hidden = chooser(tf.constant([0]), SIZE, tf.constant([3, 0]))
    items = tf.gather(rows.items, slots)
    for event, shown in (("view", 3), ("cart", 0), ("buy", 3 * timed), ("search", 3)):
        assert hidden.keeps(event, owners, items).numpy().sum() == shown


def test_rows_may_come_in_any_order():
    rows = many()
    owners, items, _ = choose(rows, 1.0, numbers=np.array([3, 0]))
    assert owners.numpy().tolist() == [0] * 8 + [1]
    assert items.numpy()[8] == rows.items[0]
