"""Encoded inputs by position: features as prepared, histories by hand."""

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import (
    CANDIDATE_ID,
    QUERY_ID,
    EntityInputs,
    QueryInputs,
    history_name,
)
from tfcsmf.data.prepared import Csr, EntityTable, Histories
from tfcsmf.data.rows import NUM_RESERVED, UNKNOWN

USERS = EntityTable(np.array(["u0", "u1", "u2"], object), 2, (), {})
HISTORIES = Histories(
    {
        "view": Csr(
            np.array([0, 5, 5, 7]), np.array([10, 11, 12, 11, 13, 20, 21], np.int32)
        ),
        "buy": Csr(np.array([0, 1, 2, 2]), np.array([12, 15], np.int32)),
    }
)


def rows(*positions):
    return [position + NUM_RESERVED for position in positions]


def encode(users, ends, excluded=None, length=3, histories=HISTORIES):
    inputs = QueryInputs(USERS, histories, length)

    def keeps(_, owners, positions):
        return tf.not_equal(positions, tf.gather(tf.constant(excluded), owners))

    ends = tf.constant(np.reshape(ends, [len(users), -1]), tf.int64)
    return inputs(tf.constant(users), ends, None if excluded is None else keeps)


def test_histories_are_the_last_events_and_stay_with_their_user():
    got = encode([0, 1, 2, 0], [[5, 1], [5, 2], [6, 2], [2, 0]])
    assert got["history_view"].to_list() == [
        rows(12, 11, 13),
        [],
        rows(20),
        rows(10, 11),
    ]
    assert got["history_buy"].to_list() == [rows(12), rows(15), [], []]
    np.testing.assert_array_equal(
        got[QUERY_ID], [NUM_RESERVED, NUM_RESERVED + 1, UNKNOWN, NUM_RESERVED]
    )


def test_what_is_not_kept_leaves_the_histories():
    got = encode([0, 0], [[5, 1], [5, 1]], excluded=[11, 12])
    assert got["history_view"].to_list() == [rows(12, 13), rows(11, 13)]
    assert got["history_buy"].to_list() == [rows(12), []]


def test_histories_that_are_empty_altogether():
    empty = Histories({"view": Csr(np.zeros(4, np.int64), np.zeros(0, np.int32))})
    got = encode([0, 2], [[0], [0]], histories=empty, excluded=[0, 1])
    assert got["history_view"].to_list() == [[], []]
    none = encode([0, 2], np.zeros([2, 0]), histories=Histories({}))
    assert list(none) == [QUERY_ID]


def test_length_longer_than_any_history():
    got = encode([0], [[5, 1]], length=9)
    assert got["history_view"].to_list() == [rows(10, 11, 12, 11, 13)]


def test_entities_give_their_prepared_features(tiny_log):
    positions = np.array([7, 0, 39, 7], np.int32)
    got = EntityInputs(tiny_log.items, CANDIDATE_ID)(tf.constant(positions))
    kinds = {encoder.kind for encoder in tiny_log.items.encoders}
    assert kinds == {"categorical", "numeric", "multi", "vector"}
    assert set(got) == {CANDIDATE_ID, *tiny_log.items.features}
    np.testing.assert_array_equal(got[CANDIDATE_ID], tiny_log.items.id_rows[positions])
    for name, values in tiny_log.items.features.items():
        np.testing.assert_array_equal(got[name], values[positions])


def test_inputs_work_inside_tf_data():
    inputs = QueryInputs(USERS, HISTORIES, 2)
    ends = tf.constant([[5, 1]], tf.int64)
    dataset = tf.data.Dataset.range(1).map(lambda _: inputs(tf.constant([0]), ends))
    (element,) = dataset
    assert element["history_view"].to_list() == [rows(11, 13)]


def test_history_name():
    assert history_name("cart") == "history_cart"
