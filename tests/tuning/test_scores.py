"""Scores by hand, and Pareto sets and volumes against their definitions."""

import itertools

import numpy as np
import pytest

from tfcsmf.errors import ConfigError
from tfcsmf.tuning.scores import Scoring, check_weights, hypervolume, pareto

REFERENCE = {"a": 0.5, "b": 0.2, "c": 0.1}
SMALLEST = {"a": 0.01, "b": 0.01, "c": 0.01}


def scoring(how="weights", weights=(1.0, 1.0, 1.0), reference=REFERENCE):
    return Scoring(how, dict(zip("abc", weights, strict=True)), reference, SMALLEST)


def test_the_reference_scores_one():
    for how in ("weights", "hypervolume"):
        assert scoring(how, (1, 2, 5)).score(REFERENCE) == pytest.approx(1.0)


def test_weights_by_hand():
    values = {"a": 0.6, "b": 0.1, "c": 0.1}
    expected = (1 * 0.6 / 0.5 + 2 * 0.1 / 0.2 + 5 * 1.0) / 8
    assert scoring(weights=(1, 2, 5)).score(values) == pytest.approx(expected)
    first = scoring(weights=(1, 2, 5)).score({"a": 0.6})
    assert first == pytest.approx(0.6 / 0.5)
    assert scoring(weights=(0, 1, 1)).score({"a": 0.6}) is None


def test_hypervolume_scores_order_as_volumes():
    rng = np.random.default_rng(0)
    points = rng.random((20, 3))
    scores = [
        scoring("hypervolume").score(dict(zip("abc", point, strict=True)))
        for point in points
    ]
    volumes = [hypervolume(point[np.newaxis]) for point in points]
    assert np.argsort(scores).tolist() == np.argsort(volumes).tolist()
    assert scores[0] == pytest.approx((volumes[0] / (0.5 * 0.2 * 0.1)) ** (1 / 3))


def test_a_reference_of_zero_counts_as_one_hit():
    nothing = scoring(reference={"a": 0.0, "b": 0.2, "c": 0.1})
    assert nothing.score({"a": 0.02}) == pytest.approx(2.0)


def test_pareto_by_definition():
    points = np.random.default_rng(1).integers(0, 4, (40, 3)).astype(float)

    def beaten(point):
        return any((other >= point).all() and (other > point).any() for other in points)

    assert pareto(points).tolist() == [not beaten(point) for point in points]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_volume_by_inclusion_and_exclusion(dimensions):
    points = np.random.default_rng(dimensions).random((6, dimensions))
    expected = sum(
        (-1) ** (size + 1) * np.prod(np.min(subset, axis=0))
        for size in range(1, len(points) + 1)
        for subset in itertools.combinations(points, size)
    )
    assert hypervolume(points) == pytest.approx(expected)


def test_volume_of_nothing_and_of_repeated_points():
    assert hypervolume(np.zeros((0, 3))) == 0.0
    assert hypervolume(np.array([[0.5, 2.0], [0.5, 2.0]])) == pytest.approx(1.0)


def test_weights_are_checked():
    assert check_weights({"b": 3}, ["a", "b"]) == {"a": 1.0, "b": 3.0}
    with pytest.raises(ConfigError, match="Did you mean 'view'"):
        check_weights({"veiw": 1}, ["view", "buy"])
    with pytest.raises(ConfigError, match=">= 0"):
        check_weights({"view": -1}, ["view", "buy"])
    with pytest.raises(ConfigError, match="above 0"):
        check_weights({"view": 0, "buy": 0}, ["view", "buy"])
