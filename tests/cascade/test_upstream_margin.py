"""The margins of a batch, against the definition on explicit scores."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade.batch_loss import UpstreamMargin
from tfcsmf.losses import adaptive_margin

RNG = np.random.default_rng(0)
UPSTREAM = np.float32(RNG.normal(size=[4, 6])) * (np.arange(6) != 4)
FROZEN = np.float32(RNG.normal(size=[7, 6])) * (np.arange(6) != 4)
POSITIVES = np.int32([[0, 2], [0, 5], [1, 0], [2, 6], [3, 2], [3, 3], [3, 4]])
SCORES = UPSTREAM @ FROZEN.T


def margins(form, due=None):
    settings = {"form": form, "strength": 0.7, "maximum": 1.5}
    spare = tf.one_hot(4, 6)
    arrays = [tf.constant(a, tf.float32) for a in (UPSTREAM, FROZEN)]
    return UpstreamMargin(settings, *arrays, POSITIVES, spare, due), arrays[1]


@pytest.mark.parametrize("form", ["confusable", "order"])
def test_rows_and_own_columns_equal_the_definition(form):
    means = [SCORES[r][POSITIVES[POSITIVES[:, 0] == r, 1]].mean() for r in range(4)]
    expected = adaptive_margin(
        tf.constant(SCORES, tf.float32), form, 0.7, 1.5, tf.constant(means, tf.float32)
    )
    margin, frozen = margins(form)
    rows = margin.against(frozen)
    np.testing.assert_allclose(rows.of(1, 3), expected[1:3], rtol=1e-5, atol=1e-6)
    assert np.max(expected) <= rows.largest
    own = np.int32([[0, 1], [2, 3], [5, 6]])
    got = margin.own(tf.constant([3, 0, 2]), tf.constant(own))
    for row, columns, values in zip([3, 0, 2], own, got, strict=True):
        np.testing.assert_allclose(
            values, expected.numpy()[row, columns], rtol=1e-5, atol=1e-6
        )


def test_none_are_added_where_they_are_not_due():
    margin, frozen = margins("confusable", tf.constant(False))
    scores = tf.constant(SCORES, tf.float32)
    rows = margin.against(frozen)
    np.testing.assert_array_equal(rows.added_to(scores, 0, 4), scores)
    np.testing.assert_array_equal(rows.as_factors_of(scores, 0, 4), scores)
    assert not margin.own(tf.constant([0, 1]), tf.constant([[1], [2]])).numpy().any()
