"""A memory of candidates changes how well the softmax is known, not what it pushes."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade.batch_loss import StageNegatives, batch_loss
from tfcsmf.losses import SampledSoftmax
from tfcsmf.negatives.memory import CandidateMemory, Columns

ROWS, WIDTH = 40, 6


def own_items_known():
    """Lists of known positives: user r knows item r alone."""
    return (
        tf.range(ROWS + 1, dtype=tf.int64),
        tf.range(ROWS, dtype=tf.int32),
    )


def gradients(memory, *, positives=None, excluded=None):
    """Query and candidate gradients of a batch whose row r has the positive r."""
    rng = np.random.default_rng(3)
    query, candidate = (
        tf.constant(rng.normal(size=(ROWS, WIDTH)), tf.float32) for _ in range(2)
    )
    diagonal = tf.stack([tf.range(ROWS)] * 2, axis=1)
    batch = {
        "positives": diagonal if positives is None else positives,
        "items": tf.range(ROWS),
        "excluded_pairs": diagonal if excluded is None else excluded,
        "known": tf.range(ROWS),
    }
    if memory is not None:
        memory.push(candidate, tf.range(ROWS))
    with tf.GradientTape() as tape:
        tape.watch([query, candidate])
        loss = batch_loss(
            SampledSoftmax(correct_positives=False),
            batch,
            query,
            candidate,
            StageNegatives(memory=memory),
            probability=tf.fill([ROWS], 1.0 / ROWS),
            normalized=False,
        )
    return loss, *tape.gradient(loss, [query, candidate])


@pytest.mark.parametrize("places", [ROWS, 2 * ROWS])
def test_candidates_are_pushed_as_without_a_memory(places):
    """A memory of what the batch holds says nothing new.

    Without the batch's part in its stead, what the memory is pushed is lost: half of
    all pushes, or none where half of it is empty.
    """
    alone, query, candidate = gradients(None)
    memory = CandidateMemory(places, WIDTH, own_items_known())
    loss, *others = gradients(memory)
    # Nearly: a row's own positive counts as a draw that failed in the memory.
    assert float(loss) == pytest.approx(float(alone), rel=0.01)
    for ours, theirs in zip(others, (query, candidate), strict=True):
        error = tf.norm(ours - theirs) / tf.norm(theirs)
        assert float(error) < 0.05


def test_an_empty_memory_changes_nothing():
    empty = CandidateMemory(7, WIDTH, own_items_known())
    batch = Columns(
        tf.ones([2, WIDTH]),
        tf.range(2),
        tf.constant([1.0, 3.0]),
        tf.zeros([0, 2], tf.int32),
    )
    positives = tf.constant([[0, 0], [1, 1]])
    with tf.GradientTape() as tape:
        tape.watch(batch.vectors)
        found = empty.beside(batch, positives, tf.constant([0, 1]), tf.constant(1.0))
        total = tf.reduce_sum(found.vectors[2:4])
    np.testing.assert_array_equal(found.counts, [0, 0, 1, 3, *[0] * 7])
    np.testing.assert_array_equal(tape.gradient(total, batch.vectors), np.ones((2, 6)))
    # A row's positive stays out of its negatives.
    pairs = {tuple(pair) for pair in found.excluded.numpy()}
    assert {(0, 2), (1, 3)} <= pairs and all(column >= 2 for _, column in pairs)


def test_the_push_stands_for_the_memory_too():
    """Three draws in the batch, one of them the row's own, beside six remembered."""
    memory = CandidateMemory(10, WIDTH, own_items_known())
    memory.push(tf.zeros([6, WIDTH]), tf.constant([5, 5, 6, 7, 8, 5]))
    batch = Columns(
        tf.ones([3, WIDTH]), tf.range(3), tf.ones([3]), tf.zeros([0, 2], tf.int32)
    )
    with tf.GradientTape() as tape:
        tape.watch(batch.vectors)
        found = memory.beside(
            batch, tf.constant([[0, 0]]), tf.constant([5]), tf.constant(1.0)
        )
        of_positives = tf.reduce_sum(found.vectors[:3])
        total = of_positives + tf.reduce_sum(found.vectors[3:])
    # 1 as a positive, (2 + 6) / 2 as a negative.
    expected = np.full((3, WIDTH), 5.0)
    np.testing.assert_allclose(tape.gradient(total, batch.vectors), expected)
    # Every place of item 5, which user 5 knows, is excluded.
    np.testing.assert_array_equal(found.excluded, [[0, 3], [0, 6], [0, 7], [0, 11]])
