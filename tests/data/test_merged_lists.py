"""Merged lists against a plain loop, and against the sequences of prepared logs."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.data.lists import time_gaps
from tfcsmf.data.merged_lists import merge_lists
from tfcsmf.data.rows import MISSING, NUM_RESERVED, PADDING

RNG = np.random.default_rng(0)


def random_lists(queries=30, events=3, most=7):
    """Rows and ascending times with ties, by query and event."""
    return [
        [
            (RNG.integers(3, 99, n).tolist(), np.sort(RNG.integers(0, 20, n)).tolist())
            for n in RNG.integers(0, most, events)
        ]
        for _ in range(queries)
    ]


def by_hand(lists, length, timed):
    """Rows, events and gaps of one query, oldest first."""
    entries = [
        (time if timed else 0, event, row)
        for event, (rows, times) in enumerate(lists)
        for row, time in zip(rows, times, strict=True)
    ]
    entries.sort(key=lambda entry: entry[:2])  # stable
    times = np.array([entry[0] for entry in entries], np.int64)
    gaps = time_gaps(np.zeros(len(entries), int), times) if entries else times
    rows = [entry[2] for entry in entries]
    events = [entry[1] + NUM_RESERVED for entry in entries]
    return [list(part)[-length:] for part in (rows, events, gaps)]


def padded(lists, fill=0):
    """A tensor with padding at random places; times get numbers there."""
    width = 2 + max(len(part) for part, _ in lists)
    rows = np.zeros((len(lists), width), np.int32)
    times = RNG.integers(0, 50, (len(lists), width))
    for query, (part, when) in enumerate(lists):
        places = np.sort(RNG.choice(width, len(part), replace=False))
        rows[query, places], times[query, places] = part, when
    return tf.constant(rows), tf.constant(times, tf.int64)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("length", [1, 4, 50])
@pytest.mark.parametrize("kind", ["ragged", "padded"])
def test_every_query_is_merged_as_by_hand(timed, length, kind):
    lists = random_lists()
    columns = [[query[event] for query in lists] for event in range(3)]
    if kind == "ragged":
        rows = [
            tf.ragged.constant([p for p, _ in c], tf.int32, ragged_rank=1)
            for c in columns
        ]
        times = [
            tf.ragged.constant([t for _, t in c], tf.int64, ragged_rank=1)
            for c in columns
        ]
    else:
        rows, times = zip(*map(padded, columns), strict=True)
    merged = merge_lists(rows, length, times if timed else None)
    assert (merged.gaps is not None) == timed
    for query, own in enumerate(lists):
        expected = by_hand(own, length, timed)
        count = len(expected[0])
        parts = [merged.rows, merged.events, *([merged.gaps] if timed else [])]
        for part, values in zip(parts, expected, strict=False):
            line = part[query].numpy().tolist()
            assert line[len(line) - count :] == values
            assert set(line[: len(line) - count]) <= {PADDING}
        assert merged.mask[query].numpy().sum() == count
    longest = max(len(by_hand(own, length, timed)[0]) for own in lists)
    assert merged.rows.shape[1] == longest


def test_gaps_are_exact_at_powers_of_two():
    times = np.cumsum([0, *(2**k - 1 for k in range(50)), *(2**k for k in range(50))])
    merged = merge_lists(
        [tf.ones([1, len(times)], tf.int32)], 200, [tf.constant(times[None], tf.int64)]
    )
    expected = time_gaps(np.zeros(len(times), int), times)
    assert merged.gaps[0].numpy().tolist() == expected.tolist()
    assert merged.gaps[0, 0] == MISSING


def test_lists_without_any_entry_give_padding():
    for width in (0, 3):
        merged = merge_lists([tf.zeros([2, width], tf.int32)] * 2, 5)
        assert merged.rows.numpy().tolist() == [[PADDING], [PADDING]]
        assert not merged.mask.numpy().any()
