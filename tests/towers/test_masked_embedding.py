"""MaskedEmbedding: hand-computed lookups and pools, owners, saving."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.data.rows import PADDING
from tfcsmf.towers import FREE, MaskedEmbedding
from tfcsmf.towers.masked_embedding import pool_values

TABLE = np.array([[9, 9], [1, 2], [3, 4], [5, 6]], np.float32)
OWNERS = {
    "entries": [[0, 0], [0, 1], [FREE, 0], [1, 1]],
    "columns": [[1, 0]],
    "frozen": [[0]],
}


def hand_table(ownership="entries"):
    layer = MaskedEmbedding(4, 2, ownership)
    layer.build(None)
    layer.table.assign(TABLE)
    layer.table_owner.assign(OWNERS[ownership])
    return layer


@pytest.mark.parametrize(
    ("ownership", "stage", "expected"),
    [
        ("entries", None, [[5, 6], [1, 2], [3, 4]]),
        ("entries", 0, [[0, 0], [1, 0], [0, 4]]),
        ("entries", 1, [[5, 6], [1, 2], [0, 4]]),
        ("columns", None, [[5, 6], [1, 2], [3, 4]]),
        ("columns", 0, [[0, 6], [0, 2], [0, 4]]),
        ("columns", 1, [[5, 6], [1, 2], [3, 4]]),
        ("frozen", 0, [[5, 6], [1, 2], [3, 4]]),
    ],
)
def test_lookup_by_hand(ownership, stage, expected):
    layer = hand_table(ownership)
    np.testing.assert_array_equal(layer(tf.constant([3, 1, 2]), stage), expected)
    shaped = layer(tf.constant([[3, 1], [2, 2]]), stage)
    np.testing.assert_array_equal(shaped[0], expected[:2])
    np.testing.assert_array_equal(shaped[1], [expected[2]] * 2)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (None, [[(5 + 1) / 2, (6 + 2) / 2], [3, 4], [0, 0]]),
        (0, [[(0 + 1) / 2, 0], [0, 4], [0, 0]]),
        (1, [[(5 + 1) / 2, (6 + 2) / 2], [0, 4], [0, 0]]),
    ],
)
def test_pool_ignores_padding_wherever_it_is(stage, expected):
    rows = tf.constant([[PADDING, 3, PADDING, 1], [2, 2, 2, PADDING], [PADDING] * 4])
    pool = tf.function(lambda rows: hand.pool(rows, stage))
    hand = hand_table()
    np.testing.assert_array_equal(hand.pool(rows, stage), expected)
    np.testing.assert_array_equal(pool(rows), expected)


def test_pool_of_nothing_at_all():
    hand = hand_table()
    np.testing.assert_array_equal(
        hand.pool(tf.zeros([2, 3], tf.int32)), np.zeros([2, 2])
    )
    assert hand.pool(tf.zeros([2, 0], tf.int32)).shape == (2, 2)
    assert hand.pool(tf.zeros([0, 3], tf.int32)).shape == (0, 2)


@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_the_gradient_of_lists_that_are_all_empty_is_zero(combiner):
    lists = tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.int32), [0, 0, 0])
    values = tf.ones([33, 64])
    for _ in range(20):
        # Memory that is given out again, were the gradient not written to.
        junk = [tf.fill(values.shape, np.nan) * 1.0 for _ in range(8)]
        del junk
        with tf.GradientTape() as tape:
            tape.watch(values)
            pooled = pool_values(values, lists.flat_values, lists, combiner)
        np.testing.assert_array_equal(pooled, tf.zeros([3, 64]))
        np.testing.assert_array_equal(tape.gradient(pooled, values), 0 * values)


def test_sqrtn_pools_the_sum_over_the_root_of_the_number_by_hand():
    hand = hand_table()
    padded = tf.constant([[PADDING, 3, PADDING, 1], [2, 2, 2, 2], [PADDING] * 4])
    ragged = tf.ragged.constant([[3, 1], [2, 2, 2, 2], []], dtype=tf.int32)
    expected = [[6 / np.sqrt(2), 8 / np.sqrt(2)], [3 * 2, 4 * 2], [0, 0]]
    pooled = hand.pool(padded, combiner="sqrtn")
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    np.testing.assert_array_equal(hand.pool(ragged, combiner="sqrtn"), pooled)
    np.testing.assert_allclose(
        hand.pool(ragged, 0, combiner="sqrtn"),
        [[1 / np.sqrt(2), 0], [0, 8], [0, 0]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
def test_pooling_from_a_block_has_one_gradient_entry_per_row(combiner):
    layer = hand_table()
    rows, lists = tf.constant([0, 3, 1]), tf.ragged.constant([[1, 2], [1]])
    gradients = []
    for given in (None, rows):
        with tf.GradientTape() as tape:
            block = None if given is None else layer.block(given)
            own = lists if given is not None else tf.ragged.constant([[3, 1], [3]])
            pooled = layer.pool(own, block=block, combiner=combiner)
            loss = tf.reduce_sum(pooled * [[1.0, 2.0], [3.0, 4.0]])
        gradients.append(tape.gradient(loss, layer.table))
    plain, blocked = gradients
    np.testing.assert_array_equal(blocked.indices, rows)
    np.testing.assert_allclose(
        tf.convert_to_tensor(blocked), tf.convert_to_tensor(plain), rtol=1e-6
    )
    weight = 1 / 2 if combiner == "mean" else 1 / np.sqrt(2)
    np.testing.assert_allclose(
        blocked.values,
        [[0, 0], [weight + 3, 2 * weight + 4], [weight, 2 * weight]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("combiner", ["mean", "sqrtn"])
@pytest.mark.parametrize("stage", [None, 0, 1])
@pytest.mark.parametrize("ownership", list(OWNERS))
def test_pool_and_its_gradient_equal_the_dense_reference(ownership, stage, combiner):
    layer = hand_table(ownership)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, [6, 5]).astype(np.int32)
    rows[2] = PADDING
    upstream = tf.constant(rng.normal(size=[6, 2]), tf.float32)
    used = (
        np.ones_like(TABLE)
        if stage is None
        else np.less_equal(OWNERS[ownership], stage)
    )
    used = np.broadcast_to(used, TABLE.shape).astype(np.float32)
    counts = np.stack([(rows == r).sum(axis=1) for r in range(4)], axis=1)
    counts[:, PADDING] = 0
    number = np.maximum(counts.sum(1, keepdims=True), 1)
    number = number if combiner == "mean" else np.sqrt(number)
    weights = (counts / number).astype(np.float32)

    with tf.GradientTape() as tape:
        pooled = layer.pool(tf.constant(rows), stage, combiner=combiner)
        loss = tf.reduce_sum(pooled * upstream)
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.table))
    np.testing.assert_allclose(pooled, weights @ (TABLE * used), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, (weights.T @ upstream.numpy()) * used, rtol=1e-5, atol=1e-6
    )


def test_gradient_touches_looked_up_rows_only():
    layer = hand_table()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer.pool(tf.constant([[2, PADDING], [3, 3]])))
    gradient = tape.gradient(loss, layer.table)
    assert isinstance(gradient, tf.IndexedSlices)
    assert sorted(set(gradient.indices.numpy())) == [2, 3]


def test_owner_shapes_and_initial_scale():
    for ownership, shape in (
        ("entries", [500, 16]),
        ("columns", [1, 16]),
        ("frozen", [1, 1]),
    ):
        layer = MaskedEmbedding(500, 16, ownership)
        layer.build(None)
        assert layer.table_owner.shape.as_list() == shape
        assert (layer.table_owner.numpy() == FREE).all()
        assert layer.table_owner.dtype == tf.int8  # one byte per entry
        assert len(layer.trainable_variables) == 1
        assert layer.table.numpy().std() == pytest.approx(16**-0.5, rel=0.05)


def test_config_round_trip():
    layer = MaskedEmbedding(7, 3, "columns", scale=0.5, name="tags")
    copy = MaskedEmbedding.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert (copy.num_rows, copy.dimension, copy.ownership) == (7, 3, "columns")
    assert (copy.scale, copy.name) == (0.5, "tags")


@pytest.mark.parametrize("ownership", list(OWNERS))
def test_save_and_load_restores_table_and_owners(tmp_path, ownership):
    layer = hand_table(ownership)
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    other = MaskedEmbedding(4, 2, ownership)
    other.build(None)
    tf.train.Checkpoint(layer=other).read(path).assert_consumed()
    np.testing.assert_array_equal(other.table, layer.table)
    np.testing.assert_array_equal(other.table_owner, layer.table_owner)
    copy = MaskedEmbedding.from_config(layer.get_config())
    copy.build(None)
    copy.set_weights(layer.get_weights())  # owners are among the weights
    np.testing.assert_array_equal(copy(tf.range(4), 0), layer(tf.range(4), 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "Received: 0 and 3"),
        ((3, 0), "Received: 3 and 0"),
        ((3, 3, "rows"), "'entries', 'columns' or 'frozen'. Received: 'rows'"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedEmbedding(*arguments)
