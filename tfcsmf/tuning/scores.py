"""From a metric per objective to one number, and the trials no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfcsmf.errors import ConfigError, nearest

Scalarisation = Literal["weights", "hypervolume"]


@dataclass(frozen=True)
class Scoring:
    """One number for a trial: how much better than the configuration it varies.

    With r_o the metric of objective o divided by that of the *reference* run (the
    sweep's configuration with nothing changed), the score is

        weights:       sum_o w_o r_o / sum_o w_o
        hypervolume:   (prod_o r_o)^(1/S)

    so the reference itself scores 1, whatever the objectives' scales. The second is
    the root of the volume a trial dominates above nothing, in units of the
    reference's: it has the order of hypervolumes, and no weights to choose.

    Attributes:
      how: `weights` or `hypervolume`.
      weights: by objective, >= 0, not all 0; used by `weights`.
      reference: metric of the reference run by objective.
      smallest: smallest metric above 0 by objective (a hit of one user); stands in
        where the reference run has less.
    """

    how: Scalarisation
    weights: Mapping[str, float]
    reference: Mapping[str, float]
    smallest: Mapping[str, float]

    def score(self, values: Mapping[str, float]) -> float | None:
        """Returns the score over the objectives that `values` has.

        Before the last stage that is an estimate, on the same scale.

        Returns:
          The score; None if no objective that counts is known yet.

        Example:
          >>> even = {"click": 1.0, "buy": 1.0}
          >>> base = {"click": 0.2, "buy": 0.1}
          >>> scoring = Scoring("weights", even, base, base)
          >>> scoring.score({"click": 0.3}), scoring.score({"click": 0.3, "buy": 0.1})
          (1.5, 1.25)
        """
        names = list(values)
        ratios = np.array(
            [values[n] / max(self.reference[n], self.smallest[n]) for n in names]
        )
        if self.how == "hypervolume":
            return float(np.prod(ratios) ** (1 / len(names))) if names else None
        weights = np.array([self.weights[n] for n in names])
        total = weights.sum()
        return round(float(weights @ ratios / total), 12) if total > 0 else None


def check_weights(
    weights: Mapping[str, float], objectives: Sequence[str]
) -> dict[str, float]:
    """Returns a weight for every objective, 1 where none is given.

    Raises:
      ConfigError: for another name, a negative weight, or zeros only.
    """
    for name, weight in weights.items():
        if name not in objectives:
            raise ConfigError(
                f"--weights should name objectives of {list(objectives)}. Received: "
                f"{name!r}.{nearest(name, objectives)}"
            )
        if not 0 <= weight < float("inf"):
            raise ConfigError(
                f"Weights of a sweep should be >= 0. Received: {name}={weight}."
            )
    chosen = {name: float(weights.get(name, 1.0)) for name in objectives}
    if not any(chosen.values()):
        raise ConfigError(
            f"At least one objective should have a weight above 0. Received: {chosen}."
        )
    return chosen


def pareto(points: np.ndarray) -> np.ndarray:
    """Returns which points no other one beats: as good everywhere, better somewhere.

    Args:
      points: float [n, S], larger is better.

    Returns:
      bool [n]; equal points are kept together.

    Example:
      >>> pareto(np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
      [True, True, False]
    """
    not_worse = (points[:, np.newaxis] >= points).all(axis=2)  # [n, n]
    better = (points[:, np.newaxis] > points).any(axis=2)
    return np.logical_not((not_worse & better).any(axis=0))


def hypervolume(points: np.ndarray) -> float:
    """Returns the volume between the origin and a set of points.

    By slicing along the last objective, exact; for the few objectives and few
    hundred trials of a sweep.

    Args:
      points: float [n, S], >= 0.

    Example:
      >>> hypervolume(np.array([[1.0, 3.0], [2.0, 2.0]]))  # 1 x 3 + (2 - 1) x 2
      5.0
    """
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[pareto(points)]
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = points[:, -1] - np.append(points[1:, -1], 0.0)
    return sum(
        height * hypervolume(points[: number + 1, :-1])
        for number, height in enumerate(heights.tolist())
        if height > 0
    )
