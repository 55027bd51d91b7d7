import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.towers import block_slack, bounded
from tfcsmf.towers.tower import thinned


def test_lengths_are_one_or_below_and_directions_stay():
    vectors = np.float32([[3, 4], [0.3, 0.4], [0, 0]])
    np.testing.assert_allclose(bounded(vectors), [[0.6, 0.8], [0.6, 0.8], [0, 0]])
    # |v|^2 = 1/4: divided by sqrt(1 + 1/4).
    expected = np.float32([[0.3, 0.4]]) / np.sqrt(1.25)
    np.testing.assert_allclose(bounded(vectors[1:2], 1.0), expected, rtol=1e-6)
    assert np.linalg.norm(bounded(1e3 * vectors, 1.0), axis=1).max() <= 1
    assert [block_slack(stage) for stage in range(3)] == [0, 1, 1]


def test_a_row_is_the_same_number_alone_and_in_a_batch():
    vectors = np.random.default_rng(0).normal(size=(33, 61)).astype(np.float32)
    whole = bounded(vectors).numpy()
    for row in range(33):
        np.testing.assert_array_equal(bounded(vectors[row : row + 1])[0], whole[row])
    np.testing.assert_array_equal(bounded(vectors[np.newaxis])[0], whole)


def test_zeros_have_a_finite_gradient():
    vectors = tf.zeros([2, 3])
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        total = tf.reduce_sum(bounded(vectors))
    assert np.isfinite(tape.gradient(total, vectors)).all()


@pytest.mark.parametrize("ragged", [False, True])
def test_thinned_histories_keep_some_rows_of_their_own(ragged):
    lists = tf.constant(np.arange(2, 402).reshape(4, 100), tf.int32)
    given = tf.RaggedTensor.from_tensor(lists) if ragged else lists
    seed = tf.constant([1, 2])
    first, again = (thinned(given, 0.3, seed) for _ in range(2))
    other = thinned(given, 0.3, seed + 1)
    kept = 0
    for number, rows in enumerate(lists.numpy()):
        own = first[number].numpy()
        np.testing.assert_array_equal(own, again[number])
        assert set(own) - {0} < set(rows)
        assert set(own) != set(other[number].numpy())
        kept += np.count_nonzero(own)
    assert 240 < kept < 320  # 280 expected, standard deviation 9
    assert not np.any(thinned(lists, 1.0, seed))
