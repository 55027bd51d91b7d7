"""What a resumed run needs, and how a checkpoint holds it.

Batches, dropout and every other draw are pure functions of (seed, stage, step), so
the position in `Progress` stands for the data, the shuffle and the random numbers;
the rest are arrays. A table in shards has one of each per shard, and copies of a shard
stay with the process that holds it. Their names in a checkpoint:

    block_owner           owner of every output dimension
    history_owner         first stage that sees each history, with a sequence encoder
    model/<parameter>     values
    owner/<parameter>     owners
    average/<parameter>   average over the ends of the phase's epochs, if that is kept
    best/<parameter>      best values of the phase, left out while they are the latest
    before_pruning/...    values before the last pruning, until the next stage begins
    frozen/...            vectors of frozen stages, see `FrozenScores`
    optimizer/...         step and slots of a phase that is not over
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade import capacity
from tfcsmf.cascade.checkpoints import Checkpoint
from tfcsmf.cascade.frozen import FrozenScores
from tfcsmf.cascade.model import CSMF
from tfcsmf.cascade.progress import Progress
from tfcsmf.errors import CheckpointError
from tfcsmf.towers.shards import device_of

Arrays = dict[str, Any]  # arrays, or what `np.asarray` makes arrays of


class TrainingState:
    """The state of a cascade in training.

    Args:
      model: holds the current parameters and owners.
      frozen: the remembered vectors of frozen stages.
      first_stage: where training starts.

    Attributes:
      progress: where training is.
      average: average of the parameters at the ends of this phase's epochs; empty
        before the first, or if no average is kept.
      best: the best parameters of the current phase by name; empty before the
        first evaluation.
      before_pruning: parameters before the last pruning; empty once the next
        stage has begun, or if that stage does not start from them.
      slots: the optimizer's state of an interrupted phase, as loaded.
    """

    def __init__(self, model: CSMF, frozen: FrozenScores, first_stage: int) -> None:
        self._model = model
        self._frozen = frozen
        self.progress = Progress()
        self.progress.begin_stage(first_stage)
        self.average: Arrays = {}
        self.best: Arrays = {}
        self.before_pruning: Arrays = {}
        self.slots: Mapping[str, Any] = {}

    def begin_phase(self) -> None:
        """Forgets what belongs to the phase before."""
        self.average, self.best, self.slots = {}, {}, {}

    def update_average(self, rate: float) -> None:
        """Moves the average a share `rate` of the way to the current parameters.

        Entries that do not change, frozen ones above all, stay bit-equal.
        """
        current = capacity.snapshot(self._model)
        for parameter in self._model.owned_parameters if self.average else ():
            name = parameter.name
            with device_of(parameter.variable):
                before = self.average[name]
                current[name] = before + np.float32(rate) * (current[name] - before)
        self.average = current

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the model the average, if there is one, and its own values back."""
        if not self.average:
            yield
            return
        current = capacity.snapshot(self._model)
        self._assign(self.average)
        yield
        self._assign(current)

    def keep_best(self) -> None:
        """Remembers the average, or else the current parameters, as the best."""
        self.best = self.average or capacity.snapshot(self._model)

    def load_best(self) -> None:
        """Sets the model to the best parameters of the phase."""
        self._assign(self.best)

    def _assign(self, values: Arrays) -> None:
        for parameter in self._model.owned_parameters:
            if parameter.name in values:
                capacity.assign(parameter.variable, values[parameter.name])

    def contents(self, slots: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
        """Returns the state and the arrays of a checkpoint, variables among them.

        Args:
          slots: the optimizer's state; empty where the phase is over.
        """
        groups: list[tuple[str, Mapping[str, Any]]] = [
            ("average", self.average),
            ("best", {} if self._best_is_latest else self.best),
            ("before_pruning", self.before_pruning),
            ("frozen", self._frozen.arrays),
            ("optimizer", slots),
        ]
        arrays: Arrays = dict(_variables(self._model))
        for group, values in groups:
            arrays |= {f"{group}/{name}": value for name, value in values.items()}
        return self.progress.to_dict(), arrays

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint of this run.

        Raises:
          CheckpointError: if it belongs to another configuration or log.
        """
        self.progress = Progress(**checkpoint.state)
        self.slots = _Group(checkpoint.arrays, "optimizer")
        self.take(checkpoint.arrays)

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Sets everything but the position and the slots, see `contents`."""
        load_model_arrays(self._model, arrays)
        self.average = self._parameters(arrays, "average")
        self.best = self._parameters(arrays, "best")
        if self._best_is_latest:
            self.keep_best()
        self.before_pruning = self._parameters(arrays, "before_pruning")
        self._frozen.arrays = dict(_Group(arrays, "frozen"))

    def inherit(self, checkpoint: Checkpoint) -> None:
        """Takes over the reports of a finished run that is being extended."""
        self.progress.finished = checkpoint.state["finished"]
        self.progress.curves = checkpoint.state["curves"]
        self.before_pruning = self._parameters(checkpoint.arrays, "before_pruning")
        # Remembered on this log: its histories may have grown since.
        for stage in range(self.progress.stage):
            self._frozen.remember(stage)

    def _parameters(self, arrays: Mapping[str, Any], group: str) -> Arrays:
        """Returns values of parameters, each where the parameter is."""
        values = _Group(arrays, group)
        return {
            p.name: capacity.placed(p.variable, values[p.name])
            for p in self._model.owned_parameters
            if p.name in values
        }

    @property
    def _best_is_latest(self) -> bool:
        # Parameters move with every step, their average at the end of an epoch.
        # Where a stage has just begun there is no best yet; its first evaluation
        # replaces whatever is here.
        return self.progress.best_step == self.progress.step


def model_arrays(model: CSMF) -> dict[str, np.ndarray]:
    """Returns parameters and owners by name."""
    return {name: variable.numpy() for name, variable in _variables(model).items()}


def load_model_arrays(model: CSMF, arrays: Mapping[str, Any]) -> None:
    """Sets parameters and owners from a checkpoint.

    Raises:
      CheckpointError: if names or shapes are not those of the model.
    """
    for name, variable in _variables(model).items():
        shape = tuple(variable.shape)
        value = arrays[name] if name in arrays else None
        if value is None or tuple(value.shape) != shape:
            received = "nothing" if value is None else tuple(value.shape)
            raise CheckpointError(
                f"The checkpoint should hold {name!r} of shape {shape}. Received: "
                f"{received}. It belongs to another configuration or log."
            )
        capacity.assign(variable, value)


def _variables(model: CSMF) -> dict[str, tf.Variable]:
    variables: dict[str, tf.Variable] = {"block_owner": model.block_owner}
    if model.query_tower.sequence is not None:
        variables["history_owner"] = model.query_tower.sequence.history_owner
    for parameter in model.owned_parameters:
        variables[f"model/{parameter.name}"] = parameter.variable
        variables[f"owner/{parameter.name}"] = parameter.owner
    return variables


class _Group(Mapping[str, Any]):
    """The arrays whose names begin with that of a group, read when they are used."""

    def __init__(self, arrays: Mapping[str, Any], group: str) -> None:
        self._arrays = arrays
        self._prefix = f"{group}/"

    def __getitem__(self, name: str) -> Any:
        return self._arrays[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        for name in self._arrays:
            if name.startswith(self._prefix):
                yield name[len(self._prefix) :]

    def __len__(self) -> int:
        return sum(1 for _ in self)
