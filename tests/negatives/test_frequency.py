"""Sampling probabilities: shares, mixtures and streams."""

import numpy as np
import pytest

from tfcsmf.negatives import (
    StreamingFrequency,
    mixed_probability,
    sampling_probability,
)


def test_shares_of_examples():
    shares = sampling_probability(np.array([4, 0, 4, 4, 1]), 6)
    np.testing.assert_allclose(shares, [1 / 5, 1 / 5, 0, 0, 3 / 5, 0], rtol=1e-6)
    assert shares.dtype == np.float32
    np.testing.assert_array_equal(sampling_probability(np.zeros(0, int), 3), [0, 0, 0])


def test_mixture_weights_sources_by_their_draws():
    skewed, hard = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0])
    mixed = mixed_probability([(6, skewed), (3, None), (1, hard)], 4)
    expected = [
        0.6 * 0.5 + 0.3 / 4,
        0.6 * 0.5 + 0.3 / 4,
        0.3 / 4 + 0.1,
        0.3 / 4,
    ]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    assert mixed.sum() == pytest.approx(1.0)


def test_mixture_of_one_source_keeps_its_logarithm_finite():
    mixed = mixed_probability([(3, np.array([1.0, 0.0])), (0, None)], 2)
    assert mixed[0] == 1.0 and 0 < mixed[1] < 1e-30
    assert np.isfinite(np.log(mixed)).all()


def test_mixture_is_not_clipped_for_rare_items():
    rare = np.array([1 - 1e-9, 1e-9])
    assert mixed_probability([(1, rare)], 2)[1] == pytest.approx(1e-9, rel=1e-5)


def test_stream_of_fixed_periods_is_learned_exactly():
    stream = StreamingFrequency(buckets=50, rate=0.2)
    for step in range(1, 61):
        batch = [item for item in (1, 2, 3, 4) if step % item == 0]
        stream.update(np.array(batch))
    np.testing.assert_allclose(
        stream.probability(np.array([1, 2, 3, 4])), [1, 1 / 2, 1 / 3, 1 / 4]
    )
    assert stream.probability(np.array([9])) == 0.0


def test_moving_average_by_hand():
    stream = StreamingFrequency(buckets=10, rate=0.25)
    for step in range(1, 8):
        stream.update(np.array([7]) if step in (2, 3, 7) else np.array([1]))
    gap = 2.0  # first met at step 2
    gap = 0.75 * gap + 0.25 * 1
    gap = 0.75 * gap + 0.25 * 4
    assert stream.probability(np.array([7]))[0] == pytest.approx(1 / gap)


def test_a_repeated_id_counts_once_and_a_drift_is_followed():
    stream = StreamingFrequency(buckets=10, rate=0.5)
    for step in range(1, 201):
        ids = [5, 5, 5] if step <= 100 or step % 10 == 0 else [1]
        returned = stream.update(np.array(ids))
        assert returned.shape == (len(ids),)
        if step == 100:
            assert returned[0] == 1.0
    assert stream.probability(np.array([5]))[0] == pytest.approx(0.1, rel=0.01)


def test_random_stream_estimates_its_rates():
    rng = np.random.default_rng(0)
    rates = np.array([0.5, 0.2, 0.05])
    stream = StreamingFrequency(buckets=8, rate=0.01)
    for _ in range(6000):
        stream.update(np.flatnonzero(rng.random(3) < rates))
    estimated = stream.probability(np.arange(3))
    np.testing.assert_allclose(estimated, rates, rtol=0.3)


def test_ids_that_share_a_bucket_are_counted_together():
    stream = StreamingFrequency(buckets=4, rate=0.5)
    for step in range(1, 21):
        stream.update(np.array([1 if step % 2 else 5]))
    np.testing.assert_array_equal(stream.probability(np.array([1, 5, -3])), [1, 1, 1])


@pytest.mark.parametrize(("buckets", "rate"), [(0, 0.1), (1, 0.0), (1, 1.5)])
def test_invalid_arguments(buckets, rate):
    with pytest.raises(ValueError, match=f"Received: {buckets} and {rate}"):
        StreamingFrequency(buckets, rate)
