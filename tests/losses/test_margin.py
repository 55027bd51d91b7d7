"""The adaptive margin by hand, and nothing flows upstream."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.losses import SampledSoftmax, adaptive_margin

UPSTREAM = tf.constant([[1.0, 3.0, -9.0], [0.5, 0.0, 0.0]])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_confusable_by_hand():
    margin = adaptive_margin(UPSTREAM, "confusable", 2.0)
    expected = [[0, 2 * sigmoid(2), 2 * sigmoid(-10)], [2 * sigmoid(0.5), 0, 2 * 0.5]]
    np.testing.assert_allclose(margin, expected, rtol=1e-5)


def test_order_by_hand():
    margin = adaptive_margin(UPSTREAM, "order", 0.5, maximum=4.0)
    expected = [[0, 0, 0.5 * 4.0], [0, 0, 0]]
    np.testing.assert_allclose(margin, expected)
    below_cap = adaptive_margin(UPSTREAM, "order", 0.5, maximum=20.0)
    np.testing.assert_allclose(below_cap, [[0, 0, 0.5 * 10.0], [0, 0, 0]])


def test_no_margin():
    assert adaptive_margin(UPSTREAM, "none", 3.0) is None
    assert adaptive_margin(UPSTREAM, "confusable", 0.0) is None
    with pytest.raises(ValueError, match="Received: 'softer'"):
        adaptive_margin(UPSTREAM, "softer", 1.0)


@pytest.mark.parametrize("form", ["confusable", "order"])
def test_no_gradient_into_upstream(form):
    upstream, scores = tf.Variable(UPSTREAM), tf.Variable(tf.eye(3))
    with tf.GradientTape() as tape:
        margin = adaptive_margin(upstream * 2.0, form, 1.0)
        loss = SampledSoftmax()(scores[:2], tf.eye(3), margin=margin)
    gradients = tape.gradient(loss, [upstream, scores])
    assert gradients[0] is None
    assert np.abs(gradients[1]).max() > 0
