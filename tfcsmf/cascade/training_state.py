"""What a resumed run needs, and how a checkpoint holds it.

Batches, dropout and every other draw are pure functions of (seed, stage, step), so
the position in `Progress` stands for the data, the shuffle and the random numbers;
the rest are arrays. Their names in a checkpoint:

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

Arrays = dict[str, np.ndarray]


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
        self.slots: Arrays = {}

    def begin_phase(self) -> None:
        """Forgets what belongs to the phase before."""
        self.average, self.best, self.slots = {}, {}, {}

    def update_average(self, rate: float) -> None:
        """Moves the average a share `rate` of the way to the current parameters.

        Entries that do not change, frozen ones above all, stay bit-equal.
        """
        current = capacity.snapshot(self._model)
        if self.average:
            for name, before in self.average.items():
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
                parameter.variable.assign(values[parameter.name])

    def contents(
        self, slots: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], Arrays]:
        """Returns the state and the arrays of a checkpoint.

        Args:
          slots: the optimizer's state; empty where the phase is over.
        """
        groups: list[tuple[str, Mapping[str, np.ndarray]]] = [
            ("average", self.average),
            ("best", {} if self._best_is_latest else self.best),
            ("before_pruning", self.before_pruning),
            ("frozen", self._frozen.arrays),
            ("optimizer", slots),
        ]
        arrays = model_arrays(self._model)
        for group, values in groups:
            arrays |= {f"{group}/{name}": value for name, value in values.items()}
        return self.progress.to_dict(), arrays

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint of this run.

        Raises:
          CheckpointError: if it belongs to another configuration or log.
        """
        self.progress = Progress(**checkpoint.state)
        self.slots = _group(checkpoint.arrays, "optimizer")
        self.take(checkpoint.arrays)

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets everything but the position and the slots, see `contents`."""
        load_model_arrays(self._model, arrays)
        self.average = _group(arrays, "average")
        self.best = _group(arrays, "best")
        if self._best_is_latest:
            self.keep_best()
        self.before_pruning = _group(arrays, "before_pruning")
        self._frozen.arrays = _group(arrays, "frozen")

    def inherit(self, checkpoint: Checkpoint) -> None:
        """Takes over the reports of a finished run that is being extended."""
        self.progress.finished = checkpoint.state["finished"]
        self.progress.curves = checkpoint.state["curves"]
        self.before_pruning = _group(checkpoint.arrays, "before_pruning")
        # Remembered on this log: its histories may have grown since.
        for stage in range(self.progress.stage):
            self._frozen.remember(stage)

    @property
    def _best_is_latest(self) -> bool:
        # Parameters move with every step, their average at the end of an epoch.
        # Where a stage has just begun there is no best yet; its first evaluation
        # replaces whatever is here.
        return self.progress.best_step == self.progress.step


def model_arrays(model: CSMF) -> Arrays:
    """Returns parameters and owners by name."""
    return {name: variable.numpy() for name, variable in _variables(model).items()}


def load_model_arrays(model: CSMF, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets parameters and owners from a checkpoint.

    Raises:
      CheckpointError: if names or shapes are not those of the model.
    """
    for name, variable in _variables(model).items():
        shape = tuple(variable.shape)
        if name not in arrays or arrays[name].shape != shape:
            received = arrays[name].shape if name in arrays else "nothing"
            raise CheckpointError(
                f"The checkpoint should hold {name!r} of shape {shape}. Received: "
                f"{received}. It belongs to another configuration or log."
            )
        variable.assign(arrays[name])


def _variables(model: CSMF) -> dict[str, tf.Variable]:
    variables: dict[str, tf.Variable] = {"block_owner": model.block_owner}
    if model.query_tower.sequence is not None:
        variables["history_owner"] = model.query_tower.sequence.history_owner
    for parameter in model.owned_parameters:
        variables[f"model/{parameter.name}"] = parameter.variable
        variables[f"owner/{parameter.name}"] = parameter.owner
    return variables


def _group(arrays: Mapping[str, np.ndarray], name: str) -> Arrays:
    prefix = f"{name}/"
    return {
        key[len(prefix) :]: value
        for key, value in arrays.items()
        if key.startswith(prefix)
    }
