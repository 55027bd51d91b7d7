import numpy as np
import pytest

from tfcsmf.errors import ConfigError
from tfcsmf.evaluation import bootstrap


def test_same_seed_same_draws_and_columns_share_them():
    values = np.random.default_rng(0).random((50, 2))
    both = bootstrap.bootstrap_means(values, 30, seed=4)
    assert both.shape == (30, 2)
    np.testing.assert_allclose(
        both[:, 1], bootstrap.bootstrap_means(values[:, 1], 30, seed=4)
    )
    assert not np.array_equal(both, bootstrap.bootstrap_means(values, 30, seed=5))


def test_small_batches_keep_the_number_of_samples(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CELLS", 120)
    means = bootstrap.bootstrap_means(np.arange(50.0), 31, seed=0)
    assert means.shape == (31,)
    assert np.all((means > 10) & (means < 40)) and means.std() > 0


def test_standard_deviation_of_means_is_the_standard_error():
    values = (np.arange(400) % 4 == 0).astype(float)
    means = bootstrap.bootstrap_means(values, 4000, seed=1)
    error = np.sqrt(0.25 * 0.75 / 400)
    assert means.mean() == pytest.approx(0.25, abs=4 * error / np.sqrt(4000))
    assert means.std() == pytest.approx(error, rel=0.05)


def test_interval_is_the_percentiles_of_the_means():
    values = np.random.default_rng(2).random(60)
    means = bootstrap.bootstrap_means(values, 200, seed=3)
    np.testing.assert_allclose(
        bootstrap.mean_interval(values, 200, seed=3), np.quantile(means, [0.025, 0.975])
    )
    narrow = bootstrap.mean_interval(values, 200, seed=3, level=0.5)
    np.testing.assert_allclose(narrow, np.quantile(means, [0.25, 0.75]))


def test_paired_interval_is_narrower_than_the_two_means_suggest():
    generator = np.random.default_rng(0)
    user = generator.random(300)
    a, b = user + 0.02, user + 0.01 * generator.standard_normal(300)
    difference, (low, high) = bootstrap.paired_difference(a, b, 500, seed=0)
    assert low < difference < high
    assert low > 0  # clear, though the interval of either mean spans 0.06
    swapped, (swapped_low, swapped_high) = bootstrap.paired_difference(b, a, 500, 0)
    assert swapped == pytest.approx(-difference)
    assert (swapped_low, swapped_high) == pytest.approx((-high, -low), abs=1e-3)


def test_rejects_empty_and_unequal():
    with pytest.raises(ConfigError, match="0 users"):
        bootstrap.bootstrap_means(np.zeros(0), 10, seed=0)
    with pytest.raises(ConfigError, match="same users"):
        bootstrap.paired_difference(np.zeros(2), np.zeros(3), 10, seed=0)
