"""Which histories an objective's pass sees, and when their weights come into play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfcsmf.data.inputs import history_name
from tfcsmf.towers import CLOSED, FREE, Tower


def opening_stages(
    objectives: Sequence[str], history_events: Sequence[str], access: str
) -> dict[str, int]:
    """Returns the first stage that sees each event's history, by event.

    Objectives come first, in their order.

    With access `earlier` the history of an objective's own events opens with its
    stage: exposures are predicted without the clicks and purchases of the user.
    Events that are no objective are open from the start.

    Why (our reading): what a user went on to click or buy says a lot about exposures
    that became clicks, and little about all the others, which a retriever of
    exposures is asked for. On Taobao the first objective lost by it.

    Example:
      >>> opening_stages(["view", "buy"], ["search", "view", "buy"], "earlier")
      {'view': 0, 'buy': 1, 'search': 0}
    """
    stages = {event: stage for stage, event in enumerate(objectives)}
    later = stages if access == "earlier" else {}
    ordered = sorted(history_events, key=lambda event: stages.get(event, len(stages)))
    return {event: later.get(event, 0) for event in ordered}


def close_histories(
    tower: Tower, opening: Mapping[str, int], keep: bool = False
) -> None:
    """Closes the weights of the histories that do not open with the first stage.

    Args:
      tower: of the queries.
      opening: see `opening_stages`.
      keep: leave their values for the stage that opens them; else they are zero.
    """
    later = [event for event, stage in opening.items() if stage > 0]
    for layer, first in tower.encoding_kernels():
        value, owner = layer.kernel.numpy(), layer.kernel_owner.numpy()
        for event in later:
            rows = _rows(tower, event, first)
            owner[rows] = CLOSED
            if not keep:
                value[rows] = 0.0
        layer.kernel.assign(value)
        layer.kernel_owner.assign(owner)
    if tower.sequence is not None:
        tower.sequence.close([history_name(event) for event in later], keep)


def lend_histories(tower: Tower, opening: Mapping[str, int], seed: int) -> None:
    """Lets the first stage learn from the histories that it does not see itself.

    Rows of later objectives are trained beside its own, with their histories, whose
    weights nobody owns meanwhile. They start as those of the first stage's histories
    do. `close_histories` with `keep` ends it.
    """
    later = [event for event, stage in opening.items() if stage > 0]
    for layer, first in tower.encoding_kernels():
        value, owner = layer.kernel.numpy(), layer.kernel_owner.numpy()
        draws = tf.keras.initializers.GlorotUniform(seed=seed)(value.shape).numpy()
        for event in later:
            rows = _rows(tower, event, first)
            owner[rows] = FREE
            if layer is tower.output_layer:
                value[rows] = tower.history_start(value.shape[1]).numpy()
            else:
                value[rows] = draws[rows]
        layer.kernel.assign(value)
        layer.kernel_owner.assign(owner)
    if tower.sequence is not None:
        for event in later:
            tower.sequence.open(history_name(event), FREE, seed)


def open_histories(
    tower: Tower, opening: Mapping[str, int], stage: int, seed: int
) -> None:
    """Gives a stage the weights of the histories that open with it.

    What the first stage has learned of them (`lend_histories`) is where they start.
    Else those of the hidden layer are drawn afresh, and those of the output layer start
    as a copy of the history's that opened last: a cart counts at first as a view does,
    whatever basis the output dimensions were turned to.
    """
    now = [event for event, first in opening.items() if first == stage]
    earlier = [event for event, first in opening.items() if first < stage]
    # The first of several: objectives' histories come first in `opening`.
    model = max(earlier, key=lambda event: opening[event], default=None)
    for layer, first in tower.encoding_kernels():
        value, owner = layer.kernel.numpy(), layer.kernel_owner.numpy()
        draws = tf.keras.initializers.GlorotUniform(seed=seed)(value.shape).numpy()
        for event in now:
            rows = _rows(tower, event, first)
            if not (owner[rows] == CLOSED).all():
                continue  # opened before, or trained with all
            owner[rows] = FREE
            if value[rows].any():
                continue  # learned beside the first stage
            if layer is not tower.output_layer:
                value[rows] = draws[rows]
            elif model is not None:
                value[rows] = value[_rows(tower, model, first)]
            else:
                value[rows] = tower.history_start(value.shape[1]).numpy()
        layer.kernel.assign(value)
        layer.kernel_owner.assign(owner)
    if tower.sequence is not None:
        for event in now:
            tower.sequence.open(history_name(event), stage, seed)


def _rows(tower: Tower, event: str, first: int) -> slice:
    """Returns a history's rows of a kernel whose encodings begin with row `first`."""
    columns = tower.history_columns(history_name(event))
    return slice(first + columns.start, first + columns.stop)
