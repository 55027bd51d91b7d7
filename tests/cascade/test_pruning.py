"""Pruning criteria: CPP by hand, its share for Gaussian weights, the controls."""

import math

import numpy as np
import pytest

from tfcsmf.cascade.pruning import (
    CumulativePercentile,
    FixedShare,
    RandomShare,
    make_criterion,
)


def cpp(values, tau):
    return CumulativePercentile().freed(np.array(values, np.float32), tau).tolist()


@pytest.mark.parametrize(
    ("values", "tau", "expected"),
    [
        # ascending 1 2 3 4, cumulative 1 3 6 10
        ([3, 1, 2, 4], 0.05, [0, 0, 0, 0]),
        ([3, 1, 2, 4], 0.1, [0, 1, 0, 0]),  # 1 <= 1: the bound is inclusive
        ([3, 1, 2, 4], 0.29, [0, 1, 0, 0]),
        ([3, 1, 2, 4], 0.6, [1, 1, 1, 0]),
        ([3, 1, 2, 4], 0.99, [1, 1, 1, 0]),  # the largest one always stays
        ([0, 5, 0], 0.01, [1, 0, 1]),
        ([7], 0.9, [0]),
        ([], 0.5, []),
    ],
)
def test_cpp_by_hand(values, tau, expected):
    assert cpp(values, tau) == [bool(x) for x in expected]


def test_tau_zero_frees_nothing_not_even_zeros():
    assert cpp([0, 0, 1], 0.0) == [False] * 3
    assert cpp([0, 0], 0.0) == [False] * 2


def test_a_layer_of_zeros_is_freed_whole():
    assert cpp([0, 0, 0], 0.01) == [True] * 3


def test_ties_are_freed_in_their_order():
    assert cpp([2, 2, 2, 2], 0.5) == [True, True, False, False]
    assert cpp([2, 1, 2, 1, 2], 0.5) == [True, True, False, True, False]
    freed = FixedShare().freed(np.array([1.0, 0.0, 1.0, 1.0]), 0.5)
    assert freed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("tau", [0.1, 0.2, 0.3, 0.5])
def test_freed_share_of_gaussian_weights(tau):
    weights = np.abs(np.random.default_rng(0).normal(size=200_000)).astype(np.float32)
    freed = CumulativePercentile().freed(weights, tau)
    assert freed.mean() == pytest.approx(
        math.erf(math.sqrt(-math.log(1 - tau))), abs=0.01
    )
    # By definition: the smallest ones, up to but not beyond the share of the mass.
    mass = weights.astype(np.float64)
    assert weights[freed].max() <= weights[~freed].min()
    assert mass[freed].sum() <= tau * mass.sum()
    assert mass[freed].sum() + mass[~freed].min() > tau * mass.sum()


def test_more_tau_frees_a_superset():
    weights = np.random.default_rng(1).random(500)
    sets = [CumulativePercentile().freed(weights, t) for t in (0.1, 0.3, 0.7)]
    assert (sets[0] <= sets[1]).all() and (sets[1] <= sets[2]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5, 0.7])
def test_fixed_share_is_one_of_entries(share):
    values = np.random.default_rng(0).permutation(100).astype(np.float32)
    freed = FixedShare().freed(values, share)
    assert set(values[freed]) == set(range(round(100 * share)))


def test_random_share_repeats_with_its_seed():
    values = np.arange(100.0)
    draws = [make_criterion("random", seed).freed(values, 0.3) for seed in (1, 1, 2)]
    assert [d.sum() for d in draws] == [30, 30, 30]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    criterion = RandomShare(np.random.default_rng(0))
    often = np.mean([criterion.freed(values, 0.3) for _ in range(400)], axis=0)
    assert abs(often - 0.3).max() < 5 * math.sqrt(0.21 / 400)  # blind to size


def test_criteria_of_a_configuration():
    assert isinstance(make_criterion("cpp", 0), CumulativePercentile)
    assert isinstance(make_criterion("magnitude", 0), FixedShare)
    assert isinstance(make_criterion("fisher", 0), FixedShare)
    assert isinstance(make_criterion("random", 0), RandomShare)


def rows_by_themselves(criterion, importance, takes_part, share):
    freed = np.zeros(importance.shape, bool)
    for row, part in enumerate(takes_part):
        freed[row, part] = criterion.freed(importance[row, part], share)
    return freed


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("criterion", [CumulativePercentile(), FixedShare()])
def test_by_row_equals_every_row_by_itself(criterion, share):
    rng = np.random.default_rng(0)
    importance = rng.integers(0, 6, [40, 10]).astype(np.float32)  # ties and zeros
    importance[3] = 0.0
    takes_part = rng.random([40, 10]) < 0.7
    takes_part[5], takes_part[6] = False, True
    got = criterion.freed_by_row(importance, takes_part, share)
    expected = rows_by_themselves(criterion, importance, takes_part, share)
    np.testing.assert_array_equal(got, expected)
    wide = rng.random([3, 100])
    everywhere = np.ones([3, 100], bool)
    np.testing.assert_array_equal(
        criterion.freed_by_row(wide, everywhere, share),
        rows_by_themselves(criterion, wide, everywhere, share),
    )


def test_by_row_spares_rows_of_small_entries():
    importance = np.array([[1.0, 2.0, 3.0, 4.0], [0.01, 0.02, 0.03, 0.04]])
    everywhere = np.ones([2, 4], bool)
    freed = CumulativePercentile().freed_by_row(importance, everywhere, 0.3)
    assert freed.tolist() == [[True, True, False, False]] * 2
    assert CumulativePercentile().freed(importance.ravel(), 0.3)[4:].all()


def test_random_by_row_frees_the_share_of_every_row():
    takes_part = np.zeros([30, 10], bool)
    takes_part[:, :6] = True
    freed, again, other = (
        make_criterion("random", seed).freed_by_row(np.ones([30, 10]), takes_part, 0.5)
        for seed in (1, 1, 2)
    )
    assert (freed.sum(axis=1) == 3).all() and not freed[:, 6:].any()
    assert (freed == again).all() and (freed != other).any()
