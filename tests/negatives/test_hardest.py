"""DNS and MixGCF: uniform draws, and what of them counts."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import HardestConfig
from tfcsmf.losses.own_negatives import POSITIVE, own_negatives
from tfcsmf.negatives.hardest import HardestSampler


def test_draws_are_uniform_and_counted():
    sampler = HardestSampler(5, HardestConfig(draws=4, weight=2.0), mixed=False)
    own = sampler.draw(tf.zeros([5000], tf.int32), tf.constant([1, 2])).own
    share = np.bincount(own.items.numpy().ravel(), minlength=5) / own.items.shape[0] / 4
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    # Four draws of five items, each to stand for two.
    np.testing.assert_allclose(own.log_counts, np.log(4 / 5 / 2), rtol=1e-6)
    assert own.mask.numpy().all() and own.mix.shape == (5000, 0)


def test_mixtures_lie_between_the_positive_and_every_draw():
    sampler = HardestSampler(5, HardestConfig(draws=3, hardest=1), mixed=True)
    own = sampler.draw(tf.zeros([5000], tf.int32), tf.constant([1, 2])).own
    assert sampler.pairs == ((POSITIVE, 0), (POSITIVE, 1), (POSITIVE, 2))
    mix = own.mix.numpy()
    assert 0 <= mix.min() < 0.01 and 0.99 < mix.max() < 1
    np.testing.assert_allclose(mix.mean(axis=0), 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("hardest", "expected"),
    [(1, 2.0), (2, np.log(np.exp(2) + np.exp(1.5))), (None, None)],
)
def test_the_hardest_count(hardest, expected):
    """The positive scores 3, draws 0, 1 and 2, mixtures half of both."""
    query, positive = tf.constant([[1.0]]), tf.constant([[3.0]])
    draws = tf.constant([[[0.0], [1.0], [2.0]]])
    plain = own_negatives(query, positive, draws, tf.zeros([1, 3]), hardest=hardest)
    if hardest is None:
        assert float(plain[0]) == pytest.approx(np.log(np.exp([0, 1, 2]).sum()))
        return
    kept = np.log(np.exp([2.0, 1.0][:hardest]).sum())
    assert float(plain[0]) == pytest.approx(kept)
    # Mixtures of the positive with the first two: 1.5 and 2.
    pairs, mix = [(POSITIVE, 0), (POSITIVE, 1)], tf.constant([[0.5, 0.5]])
    few = draws[:, :2]
    mixed = own_negatives(
        query, positive, few, tf.zeros([1, 2]), pairs, mix, hardest=hardest
    )
    assert float(mixed[0]) == pytest.approx(expected)


def test_only_the_hardest_get_a_gradient():
    query, positive = tf.constant([[1.0]]), tf.constant([[3.0]])
    draws = tf.Variable([[[0.0], [1.0], [2.0]]])
    with tf.GradientTape() as tape:
        loss = own_negatives(query, positive, draws, tf.zeros([1, 3]), hardest=2)
    gradient = tape.gradient(loss, draws).numpy().ravel()
    total = np.exp(1) + np.exp(2)
    np.testing.assert_allclose(
        gradient, [0, np.exp(1) / total, np.exp(2) / total], rtol=1e-6
    )
