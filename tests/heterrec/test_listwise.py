"""Closed forms of LMP against unrolled windows."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.heterrec import (
    distinct_values,
    position_weights,
    step_loss,
    step_targets,
    window_pairs,
)


def windows(places, steps, window):
    """All windows of places 1..T, unrolled; the longest one if none fits."""
    usable = places - steps + 1
    size = min(window, usable)
    return [range(s, s + size) for s in range(1, usable - size + 2)] if size > 0 else []


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_weights_equal_the_unrolled_windows(steps, window):
    width = 12
    lengths = np.arange(width + 1)
    got = position_weights(tf.constant(lengths, tf.int32), width, steps, window)
    expected = np.zeros([len(lengths), width])
    for row, length in enumerate(lengths):
        for chosen in windows(length, steps, window):
            for place in chosen:
                expected[row, width - length + place - 1] += 1
    np.testing.assert_array_equal(got, expected)
    assert expected.sum() > 0


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 2)])
def test_pairs_are_the_targets_of_the_windows_that_hold_the_place(steps, window):
    width, lengths = 9, np.array([9, 7, 4])
    items = np.arange(3 * width).reshape(3, width)
    mask = position_weights(
        tf.constant(lengths - 1, tf.int32), width - 1, steps, window
    ).numpy()
    places = np.argwhere(mask > 0).astype(np.int32)
    pairs = window_pairs(
        tf.constant(items, tf.int32),
        tf.constant(lengths, tf.int32),
        tf.constant(places),
        steps,
        window,
    ).numpy()
    assert (np.diff(pairs[:, 0]) >= 0).all()
    for row, (sequence, column) in enumerate(places):
        first = width - lengths[sequence]
        targets = set()
        for chosen in windows(lengths[sequence] - 1, steps, window):
            if column - first + 1 in chosen:
                for place in chosen:
                    ahead = [first + place - 1 + k for k in range(1, steps + 1)]
                    targets |= {int(items[sequence, at]) for at in ahead}
        # Places near an end share windows with fewer items than the closed range.
        assert targets <= set(pairs[pairs[:, 0] == row, 1].tolist())
        own = items[sequence, first:]
        lowest, highest = column + 2 - window, column + window + steps - 1
        expected = [i for i in own if lowest <= i - items[sequence, 0] <= highest]
        assert sorted(pairs[pairs[:, 0] == row, 1].tolist()) == expected


ITEMS = tf.constant([[0, 0, 4, 1, 2], [3, 1, 4, 0, 2]])
LENGTHS = tf.constant([3, 5])


def test_targets_of_every_step_by_hand():
    one = step_targets(ITEMS, LENGTHS, 1, 2, 1)
    assert one.places.numpy().tolist() == [
        [0, 2],
        [0, 3],
        [1, 0],
        [1, 1],
        [1, 2],
        [1, 3],
    ]
    assert one.positives.numpy().tolist() == [1, 2, 1, 4, 0, 2]
    two = step_targets(ITEMS, LENGTHS, 2, 2, 1)
    assert two.places.numpy().tolist() == [[0, 2], [1, 0], [1, 1], [1, 2]]
    assert two.positives.numpy().tolist() == [2, 4, 0, 2]
    # Complete windows need the second step as well.
    complete = step_targets(ITEMS, LENGTHS, 1, 2, 1, complete=True)
    np.testing.assert_array_equal(complete.places, two.places)
    assert complete.positives.numpy().tolist() == [1, 1, 4, 0]


def test_loss_equals_the_definition():
    rng = np.random.default_rng(0)
    targets = step_targets(ITEMS, LENGTHS, 1, 1, 3)
    rows = len(targets.places)
    queries = rng.normal(size=[rows, 3]).astype(np.float32)
    candidates = rng.normal(size=[3, 3]).astype(np.float32)
    bias = np.float32([0.5, -1.0, 2.0])
    columns = np.array([0, 1, 1, 2, 2], np.int32)  # of items 0..4
    present = np.array([True, True, True, True, False])
    got = step_loss(
        tf.constant(queries),
        tf.constant(candidates),
        targets,
        tf.constant(columns),
        tf.constant(bias),
        tf.constant(present),
    )
    losses, weights = [], []
    for row in range(rows):
        positive = int(targets.positives[row])
        own = {int(columns[item]) for r, item in targets.pairs.numpy() if r == row}
        scores = queries[row] @ candidates.T
        keep = [c for c in range(3) if c not in own | {columns[positive]}]
        positive_score = scores[columns[positive]]
        everything = np.append(scores[keep] + bias[keep], positive_score)
        losses.append(np.log(np.exp(everything).sum()) - positive_score)
        weights.append(float(targets.weights[row]) * present[positive])
    assert 0 < sum(w == 0 for w in weights) < rows
    expected = np.average(losses, weights=weights)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_nothing_to_predict_is_no_loss():
    targets = step_targets(ITEMS, tf.constant([1, 1]), 1, 1, 1)
    assert float(step_loss(tf.zeros([0, 3]), tf.ones([5, 3]), targets)) == 0.0


def test_every_value_once():
    values = np.random.default_rng(0).integers(0, 6, 40)
    first, columns = distinct_values(tf.constant(values))
    np.testing.assert_array_equal(values[first.numpy()][columns.numpy()], values)
    assert len(set(values[first.numpy()])) == len(first) == len(set(values))
