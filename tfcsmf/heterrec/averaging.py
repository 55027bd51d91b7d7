"""The average of parameters over epochs, which is less noise than any one of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def epoch_average(
    before: Mapping[str, np.ndarray],
    latest: Mapping[str, np.ndarray],
    memory: float,
    epochs: int,
) -> dict[str, np.ndarray]:
    """Returns the average of the parameters over the ends of the epochs so far.

    The latest counts 1, the one before `memory`, and so on, divided by their sum, so
    that the first epoch counts for no more than its turn.

    Args:
      before: the average up to the epoch before; not looked at for the first.
      latest: the parameters now.
      memory: at least 0, below 1.
      epochs: how many there were, the latest included.

    Example:
      >>> first, second = {"w": np.float32([2])}, {"w": np.float32([5])}
      >>> epoch_average(first, second, 0.5, 2)["w"].tolist()  # (0.5 * 2 + 5) / 1.5
      [4.0]

    References:
      Izmailov et al., Averaging weights leads to wider optima, 2018; the decay is that
      of Adam's moments, corrected alike.
    """
    if epochs == 1:
        return dict(latest)
    rate = np.float32((1 - memory) / (1 - memory**epochs))
    return {name: old + rate * (latest[name] - old) for name, old in before.items()}
