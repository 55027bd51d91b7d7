"""Which stage owns what: pruning, freezing and reopening the model's capacity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import CSMF
from tfcsmf.cascade.pruning import Criterion
from tfcsmf.errors import CapacityError
from tfcsmf.towers import CLOSED, FREE, OwnedParameter
from tfcsmf.towers.shards import device_of, is_remote

# Rows of a table looked at together: as all at once, without copies of all of it.
_ROWS = 1 << 16

Importance = Mapping[str, np.ndarray]  # parameter name -> values, same shape


class Shares:
    """How much a stage frees, by role (`tau`, or entries for other criteria).

    Args:
      kernel: of hidden layers, projections and the query's output kernel.
      table: of embedding tables.
      output: of output dimensions.
    """

    def __init__(self, kernel: float, table: float, output: float) -> None:
        self.by_role = {"kernel": kernel, "table": table, "output": output}


def take_over(model: CSMF, stage: int) -> None:
    """Gives everything `FREE` to the stage: what the last stage does."""
    owners = [model.block_owner, *(p.owner for p in model.owned_parameters)]
    for owner in owners:
        taken = np.where(owner.numpy() == FREE, np.int8(stage), owner.numpy())
        assign(owner, taken)


def prune(
    model: CSMF,
    stage: int,
    criterion: Criterion,
    shares: Shares,
    granularity: str = "weight",
    stages_left: int = 1,
    importance: Importance | None = None,
    dimensions: np.ndarray | None = None,
) -> dict[str, float]:
    """Frees low-information parameters of the stage; it owns the others.

    Only entries that were `FREE` while the stage trained take part. Freed entries
    are set to zero and stay `FREE`.

    Args:
      model: trained on `stage`.
      stage: 0-based.
      criterion: see `tfcsmf.cascade.pruning`.
      shares: how much to free.
      granularity: of hidden kernels: `weight`, or `unit` (whole columns by the L1
        norm of their incoming weights).
      stages_left: stages still to come; each needs an output dimension.
      importance: by parameter name; default is the magnitude of the weights.
      dimensions: information of every output dimension, float [d], for instance
        `score_spread`; default is the importance of its columns in both towers.

    Returns:
      Share of the entries that took part which were freed, by parameter.

    Raises:
      CapacityError: if there are fewer free output dimensions than the stage and
        those to come need.
    """
    parameters = model.owned_parameters

    def values_of(parameter: OwnedParameter) -> np.ndarray:
        if importance is not None:
            return importance[parameter.name]
        values = np.abs(parameter.variable.numpy())
        owner = parameter.owner.numpy()
        if owner.shape == values.shape:
            values[owner == CLOSED] = 0.0  # lent, and in no pass yet
        return values

    outputs = [p for p in parameters if p.role == "output"]
    kept = _prune_dimensions(
        model.block_owner,
        stage,
        criterion,
        shares,
        stages_left,
        sum(values_of(p).sum(axis=0) for p in outputs)
        if dimensions is None
        else dimensions,
    )
    counts: dict[str, np.ndarray] = {}
    for parameter in parameters:
        values = values_of(parameter)
        if parameter.role == "bias":
            freed = np.zeros(parameter.owner.shape, bool)
        elif parameter.role == "output":
            freed = _output_entries(
                parameter,
                values,
                kept,
                criterion,
                shares,
                prune_kept=parameter.name.startswith("query/"),
            )
        else:
            by_unit = granularity == "unit" and parameter.role == "kernel"
            freed = _entries(parameter, values, criterion, shares, by_unit)
        counted = _apply(parameter, stage, freed)
        counts[parameter.whole] = counts.get(parameter.whole, 0) + counted
    return {
        name: float(freed / took_part) if freed else 0.0
        for name, (freed, took_part) in counts.items()
    }


def _prune_dimensions(
    block_owner: tf.Variable,
    stage: int,
    criterion: Criterion,
    shares: Shares,
    stages_left: int,
    information: np.ndarray,
) -> np.ndarray:
    """Divides the free output dimensions; returns those kept so far, bool [d]."""
    owner = block_owner.numpy()
    free = np.flatnonzero(owner == FREE)
    if len(free) <= stages_left:
        raise CapacityError(
            f"Stage {stage} should leave one output dimension to each of the "
            f"{stages_left} stages to come and keep one. Received: {len(free)} free "
            "dimensions. Raise towers.dimension, or cascade.stage.output_tau so that "
            "earlier stages free more."
        )
    freed = criterion.freed(information[free], shares.by_role["output"])
    order = np.argsort(information[free], kind="stable")
    freed[order[:stages_left]] = True
    freed[order[-1]] = False
    owner[free[~freed]] = stage
    block_owner.assign(owner)
    return owner != FREE


def _entries(
    parameter: OwnedParameter,
    values: np.ndarray,
    criterion: Criterion,
    shares: Shares,
    by_unit: bool,
) -> np.ndarray:
    """Returns the freed entries of a table or hidden kernel, shape of its owner."""
    owner = parameter.owner.numpy()
    free = owner == FREE
    share = shares.by_role[parameter.role]
    freed = np.zeros(owner.shape, bool)
    if owner.size == 1:  # a table the first stage owns whole
        return freed
    if owner.shape != values.shape:  # a table owned by columns
        columns = free[0]
        freed[0, columns] = criterion.freed(values.sum(axis=0)[columns], share)
    elif by_unit:
        # A unit takes part as long as any of its weights is free.
        columns = free.any(axis=0)
        information = np.where(free, values, 0.0).sum(axis=0)[columns]
        chosen = np.zeros(owner.shape[1], bool)
        chosen[columns] = criterion.freed(information, share)
        freed = free & chosen
    elif parameter.role == "table":
        # Row by row, so that every user and item keeps the larger part of its own
        # mass whatever the scale of its row (by argument; not shown to help).
        for first in range(0, len(values), _ROWS):
            rows = slice(first, first + _ROWS)
            freed[rows] = criterion.freed_by_row(values[rows], free[rows], share)
    else:
        freed[free] = criterion.freed(values[free], share)
    return freed


def _output_entries(
    parameter: OwnedParameter,
    values: np.ndarray,
    kept: np.ndarray,
    criterion: Criterion,
    shares: Shares,
    prune_kept: bool,
) -> np.ndarray:
    """Returns the freed entries of a last layer.

    Columns of freed dimensions are freed whole. In kept columns only the query
    side frees weights: a later objective's query may still use them, while the
    candidate's block never changes again.
    """
    free = parameter.owner.numpy() == FREE
    freed = free & ~kept
    if prune_kept:
        inside = free & kept
        freed[inside] = criterion.freed(values[inside], shares.by_role["kernel"])
    return freed


def _apply(parameter: OwnedParameter, stage: int, freed: np.ndarray) -> np.ndarray:
    """Returns how many entries were freed, and how many took part."""
    owner = parameter.owner.numpy()
    free = owner == FREE
    owner[free & ~freed] = stage
    assign(parameter.owner, owner)
    if freed.any():
        kept = np.where(owner == FREE, np.float32(0), parameter.variable.numpy())
        assign(parameter.variable, kept)
    return np.array([freed.sum(), free.sum()])


def snapshot(model: CSMF) -> dict[str, np.ndarray | tf.Tensor]:
    """Returns copies of all parameters by name, each where the parameter is."""
    return {p.name: placed(p.variable, p.variable) for p in model.owned_parameters}


def assign(variable: tf.Variable, value: Any) -> None:
    """Sets a variable, where it is."""
    with device_of(variable):
        variable.assign(value)


def placed(variable: tf.Variable, value: Any) -> np.ndarray | tf.Tensor:
    """Returns a copy of a value where a variable is: an array if that is here."""
    if not is_remote(variable):
        return np.asarray(value).copy()
    with device_of(variable):
        return tf.identity(value)


def reopen(
    model: CSMF,
    how: str,
    before_pruning: Mapping[str, np.ndarray] | None,
    seed: int,
) -> None:
    """Sets the values from which freed entries start the next stage.

    Freed *output dimensions* never start from zero: with u_j = v_j = 0 on both
    sides every gradient of dimension j is zero and it would stay dead. They are
    drawn anew, in the scale of a fresh layer. So are hidden units freed whole: a
    rectified unit without weights and with a bias <= 0 would stay dead as well.

    Args:
      model: its `FREE` entries are set.
      how: `zero`, `keep` (the value before pruning) or `reinitialize`.
      before_pruning: `snapshot` before the last pruning; for `keep`.
      seed: of the draws.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    free_dimensions = model.block_owner.numpy() == FREE
    parameters = model.owned_parameters
    # By table, not by shard: draws do not depend on how a table is divided.
    opened = {p.whole for p in parameters if (p.owner.numpy() == FREE).any()}
    for parameter in parameters:
        if parameter.whole not in opened:
            continue
        value = parameter.variable.numpy()
        free = np.broadcast_to(parameter.owner.numpy() == FREE, value.shape)
        drawn = _draw(parameter, generator)
        if how == "keep" and before_pruning:
            start = np.asarray(before_pruning[parameter.name])
        elif how == "reinitialize":
            start = drawn
        elif parameter.role == "output":
            start = np.where(free_dimensions, drawn, np.float32(0))
        elif parameter.role == "kernel" and (unused := _unused_units(parameter)).any():
            start = np.where(unused, drawn, np.float32(0))
        else:
            continue
        assign(parameter.variable, np.where(free, start, value))


def _unused_units(parameter: OwnedParameter) -> np.ndarray:
    """Marks units without a weight of any stage, bool [units]."""
    unowned = np.isin(parameter.owner.numpy(), (FREE, CLOSED))
    return np.asarray(unowned.all(axis=0))


def _draw(parameter: OwnedParameter, generator: np.random.Generator) -> np.ndarray:
    """Draws values of the size that fresh ones have.

    An output layer's are drawn too: once dimensions were turned, no single input
    belongs to any of them, and an identity would mean nothing.
    """
    shape = parameter.variable.shape
    if parameter.role == "table":
        drawn = np.empty(shape, np.float32)
        for first in range(0, len(drawn), _ROWS):
            rows = drawn[first : first + _ROWS]
            rows[:] = generator.normal(0.0, parameter.scale, rows.shape)
        return drawn
    limit = np.sqrt(6.0 / (shape[0] + shape[-1]))
    return generator.uniform(-limit, limit, shape).astype(np.float32)
