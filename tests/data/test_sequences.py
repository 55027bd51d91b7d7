"""Sequences: merging, gaps, ends, and the batches that are made of them."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import Csr, Histories, Order
from tfcsmf.data.rows import MISSING, NUM_RESERVED
from tfcsmf.data.sequence_batches import (
    PaddedSequences,
    SequenceBatches,
    SequenceSettings,
)
from tfcsmf.data.sequences import merge_histories, merged_end, value_codes
from tfcsmf.errors import DataError

# user, item, event, time: three users; "c" has one event only
EVENTS = [
    ("a", "i1", "view", 1),
    ("a", "i2", "view", 3),
    ("a", "i2", "buy", 4),
    ("a", "i3", "view", 20),
    ("a", "i1", "buy", 90),
    ("b", "i3", "buy", 2),
    ("b", "i1", "view", 2),
    ("b", "i2", "view", 6),
    ("b", "i3", "view", 80),
    ("c", "i1", "view", 5),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    columns = ("user_id", "item_id", "event", "timestamp")
    # Out of order on purpose.
    frame = pl.DataFrame(EVENTS[::-1], schema=columns, orient="row")
    splits = ["test" if row[3] >= 80 else "train" for row in EVENTS[::-1]]
    frame.with_columns(pl.Series("split", splits)).write_parquet(path)
    return prepare(
        Config.from_dict(
            {
                "data": {"events": str(path), "validation_users": 0},
                "cascade": {"objectives": ["view", "buy"]},
            }
        )
    )


def named(log, sequences, user, values=None):
    position = list(log.users.ids).index(user)
    rows = slice(*sequences.offsets[position : position + 2])
    if values is not None:
        return values[rows].tolist()
    return [str(log.items.ids[item]) for item in sequences.items[rows]]


def test_events_of_all_kinds_in_order_of_time(log):
    sequences = merge_histories(log.train_histories)
    view, buy = NUM_RESERVED, NUM_RESERVED + 1
    assert named(log, sequences, "a") == ["i1", "i2", "i2", "i3"]
    assert named(log, sequences, "a", sequences.events) == [view, view, buy, view]
    # Gaps 2, 1 and 16: floor(log2(g + 1)) is 1, 1 and 4.
    assert named(log, sequences, "a", sequences.gaps) == [
        MISSING, NUM_RESERVED + 1, NUM_RESERVED + 1, NUM_RESERVED + 4
    ]  # fmt: skip
    # Equal times keep the order of the file, which is reversed here.
    assert named(log, sequences, "b") == ["i1", "i3", "i2"]
    assert named(log, sequences, "c") == ["i1"]
    assert (sequences.num_events, sequences.num_gaps) == (NUM_RESERVED + 2, 67)


def test_queries_end_before_their_own_time(log):
    sequences = merge_histories(log.test_histories)
    for objective, user, expected in (("buy", "a", 4), ("view", "b", 3)):
        part = log.test[objective]
        assert log.users.ids[part.users].tolist() == [user]
        (end,) = merged_end(part.history_end)
        assert end - sequences.offsets[part.users[0]] == expected


def test_one_kind_of_event_and_ranks_as_time_tell_nothing():
    lists = Histories(
        {"play": Csr(np.array([0, 2]), np.array([4, 5], np.int32))},
        Order(np.zeros(2, np.int8), np.array([1, 4], np.int8)),
    )
    sequences = merge_histories(lists)
    assert (sequences.num_events, sequences.num_gaps) == (0, 0)
    with pytest.raises(DataError, match="order"):
        merge_histories(Histories(lists.lists))


def test_padding_is_in_front(log):
    sequences = merge_histories(log.train_histories)
    padded = PaddedSequences(sequences)
    first = tf.constant([0, 5, 1], tf.int64)
    got = padded(first, tf.constant([3, 0, 1], tf.int64))
    expected = [[0, 1, 2], [], [1]]
    for row, places in enumerate(expected):
        real = got["mask"][row].numpy()
        assert real.tolist() == [False] * (3 - len(places)) + [True] * len(places)
        for name in ("items", "events", "gaps"):
            values = got[name][row].numpy()
            assert (values[~real] == 0).all()
            whole = getattr(sequences, name)
            np.testing.assert_array_equal(values[real], whole[places])
    assert padded(first[:1], first[:1])["mask"].numpy().tolist() == [[False]]


def settings(**changes):
    values = {"length": 6, "batch_events": 90, "uniform_negatives": 5, "seed": 3}
    return SequenceSettings(**(values | changes))


@pytest.fixture(scope="module")
def batches(tiny_log):
    return SequenceBatches(tiny_log, settings())


def positions(batch, log):
    """Catalogue positions of a batch's items, and which are real."""
    rows = batch["candidate"]["item_id"].numpy()
    assert (rows >= NUM_RESERVED).all()
    items = (rows - NUM_RESERVED)[batch["items"].numpy()]
    width = items.shape[1]
    real = np.arange(width) >= width - batch["lengths"].numpy()[:, None]
    return items, real


@pytest.mark.parametrize("negatives", [5, None])
def test_an_epoch_has_the_end_of_every_sequence_once(tiny_log, negatives):
    batches = SequenceBatches(tiny_log, settings(uniform_negatives=negatives))
    sequences = batches.sequences
    expected = sorted(
        sequences.items[max(start, end - 7) : end].tolist()
        for start, end in zip(sequences.offsets, sequences.offsets[1:], strict=False)
        if end - start >= 2
    )
    orders = []
    for epoch in range(2):
        found = []
        for batch in batches.dataset(epoch):
            items, real = positions(batch, tiny_log)
            found += [row[keep].tolist() for row, keep in zip(items, real, strict=True)]
            assert 0 < batch["lengths"].numpy().sum() < 90 + 7
            assert (batch["items"].numpy()[~real] == 0).all()
        orders.append(found)
        assert sorted(found) == expected
    assert orders[0] != orders[1]
    assert batches.num_examples == sum(len(row) - 1 for row in expected)


def test_batches_are_functions_of_seed_and_epoch(tiny_log, batches):
    again = SequenceBatches(tiny_log, settings())
    for one, other in zip(batches.dataset(1), again.dataset(1), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)
    other = next(iter(SequenceBatches(tiny_log, settings(seed=4)).dataset(1)))
    assert other["seed"].numpy().tolist() != one["seed"].numpy().tolist()


def test_lengths_in_a_batch_are_alike(tiny_log):
    batches = SequenceBatches(tiny_log, settings(length=50, batch_events=200))
    real = padded = 0
    for batch in batches.dataset(0):
        real += int(tf.reduce_sum(batch["lengths"]))
        padded += int(tf.size(batch["items"]))
    lengths = batches._lengths
    assert padded < 1.2 * real
    assert len(lengths) * lengths.max() > 1.8 * real  # without sorting


def test_candidates_are_distinct_and_hold_the_batch(tiny_log, batches):
    for batch in batches.dataset(0):
        rows = batch["candidate"]["item_id"].numpy()
        assert len(set(rows)) == len(rows)
        items, real = positions(batch, tiny_log)
        used = set(items[real] + NUM_RESERVED)
        assert used <= set(rows) and len(rows) <= len(used) + 5
        values = batch["values"].numpy()
        np.testing.assert_array_equal(values[:, 0], rows - NUM_RESERVED)
        assert values.shape == batch["column_bias"].shape


def test_bias_is_the_chance_to_be_in_a_batch(tiny_log):
    """Over many epochs, candidates are met as often as the correction says."""
    batches = SequenceBatches(tiny_log, settings(batch_events=40))
    met, chance = np.zeros(tiny_log.items.size), np.zeros(tiny_log.items.size)
    count = 0
    for epoch in range(6):
        for batch in batches.dataset(epoch):
            rows = batch["candidate"]["item_id"].numpy() - NUM_RESERVED
            met[rows] += 1
            chance[rows] += np.exp(-batch["column_bias"].numpy()[:, 0])
            count += 1
    share, mean_chance = met / count, chance / np.maximum(met, 1)
    often = met > 10
    # Draws within a user are not independent, so this is no identity.
    assert np.abs(share - mean_chance)[often].max() < 0.12
    assert np.corrcoef(share[often], mean_chance[often])[0, 1] > 0.9


def test_all_trained_items_need_no_correction(tiny_log):
    batches = SequenceBatches(tiny_log, settings(uniform_negatives=None), features=())
    batch = next(iter(batches.dataset(0)))
    assert batch["values"].shape == [tiny_log.items.trained, 1]
    assert (batch["column_bias"].numpy() == 0).all()
    assert list(batch["candidate"]) == ["item_id"]


def test_equal_values_have_equal_codes(tiny_log):
    table = tiny_log.items
    codes = value_codes(table, table.encoders)
    assert codes[:, 0].tolist() == list(range(table.size))
    kinds = set()
    for column, encoder in zip(codes.T[1:], table.encoders, strict=True):
        flat = table.features[encoder.name].reshape(table.size, -1)
        equal = (flat[:, None] == flat[None, :]).all(axis=2)
        known = column >= 0
        both = known[:, None] & known[None, :]
        same = column[:, None] == column[None, :]
        np.testing.assert_array_equal(same[both], equal[both])
        flag = flat[:, -1] == 1 if encoder.kind == "vector" else flat[:, 0] == MISSING
        np.testing.assert_array_equal(~known, flag)
        kinds.add(encoder.kind)
    assert kinds == {"categorical", "numeric", "multi", "vector"}
