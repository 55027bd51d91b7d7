"""Which histories an objective's pass sees, and when their weights come into play."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import history_name
from tfcsmf.towers import CLOSED, FREE, Tower


def opening_stages(
    objectives: Sequence[str], history_events: Sequence[str], access: str
) -> dict[str, int]:
    """Returns the first stage that sees each event's history, by event.

    With access `earlier` the history of an objective's own events opens with its
    stage: exposures are predicted without the clicks and purchases of the user.
    Events that are no objective are open from the start.

    Why (our reading): what a user went on to click or buy says a lot about exposures
    that became clicks, and little about all the others, which a retriever of
    exposures is asked for. On Taobao the first objective lost by it.

    Example:
      >>> opening_stages(["view", "buy"], ["search", "view", "buy"], "earlier")
      {'search': 0, 'view': 0, 'buy': 1}
    """
    stages = {event: stage for stage, event in enumerate(objectives)}
    later = stages if access == "earlier" else {}
    return {event: later.get(event, 0) for event in history_events}


def close_histories(tower: Tower, opening: Mapping[str, int]) -> None:
    """Closes the weights of the histories that do not open with the first stage."""
    later = [event for event, stage in opening.items() if stage > 0]
    columns = _columns(tower, later)
    layer = tower.input_layer
    value, owner = layer.kernel.numpy(), layer.kernel_owner.numpy()
    value[columns], owner[columns] = 0.0, CLOSED
    layer.kernel.assign(value)
    layer.kernel_owner.assign(owner)


def open_histories(
    tower: Tower, opening: Mapping[str, int], stage: int, seed: int
) -> None:
    """Gives a stage the weights of the histories that open with it, drawn afresh."""
    now = [event for event, first in opening.items() if first == stage]
    layer = tower.input_layer
    value, owner = layer.kernel.numpy(), layer.kernel_owner.numpy()
    opened = (owner == CLOSED) & _columns(tower, now)[:, np.newaxis]
    if not opened.any():  # for instance in a model that was trained with all
        return
    draws = tf.keras.initializers.GlorotUniform(seed=seed)(value.shape).numpy()
    layer.kernel.assign(np.where(opened, draws, value))
    layer.kernel_owner.assign(np.where(opened, np.int8(FREE), owner))


def _columns(tower: Tower, events: Collection[str]) -> np.ndarray:
    """Marks the inputs that the histories of events fill, bool [input_width]."""
    columns = np.zeros(tower.input_width, bool)
    for event in events:
        columns[tower.history_columns(history_name(event))] = True
    return columns
