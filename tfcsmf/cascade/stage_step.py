"""One compiled training step per stage, shared by training and recovery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.workers import Workers
from tfcsmf.config import StageConfig
from tfcsmf.data.batch_parts import PART
from tfcsmf.data.inputs import QUERY_ID
from tfcsmf.optimizers import RowAdagrad, RowAdam
from tfcsmf.towers import FREE, MaskedEmbedding, OwnedParameter
from tfcsmf.towers.shards import device_of


class Trainable(Protocol):
    """What a step needs of a model: `CSMF`, or a sequence model on its own."""

    stage: int

    @property
    def owned_parameters(self) -> list[OwnedParameter]:
        """Every trainable tensor with its owners."""

    @property
    def id_tables(self) -> dict[str, MaskedEmbedding]:
        """Tables whose distinct rows batches name in `rows`."""

    def compute_loss(
        self, inputs: Mapping[str, Any], training: bool = False
    ) -> tf.Tensor:
        """Returns the mean loss of a batch."""


class StageStep:
    """Forward, backward and masked update of the stage `model.stage`.

    Args:
      model: its stage must be set; parameters no longer trainable are left out of
        the gradient altogether.
      settings: optimizer, learning rates and decay.
      batch_spec: `StageBatches.element_spec`; batches differ in shape, and without
        it some of them would be compiled for anew.
      workers: share every batch; `None` for a process on its own.
    """

    def __init__(
        self,
        model: Trainable,
        settings: StageConfig,
        batch_spec: Any = None,
        workers: Workers | None = None,
    ) -> None:
        self.model = model
        self._workers = workers
        self._settings = settings
        owners = (FREE, model.stage)
        trained = [
            p for p in model.owned_parameters if np.isin(p.owner.numpy(), owners).any()
        ]
        self._dense = [p.variable for p in trained if p.role != "table"]
        self._tables = [p.variable for p in trained if p.role == "table"]
        self._names = [p.name for p in trained if p.role != "table"]
        self._names += [p.name for p in trained if p.role == "table"]
        make = RowAdam if settings.optimizer == "adam" else RowAdagrad
        self.optimizers = (
            make(settings.learning_rate, decay=settings.weight_decay, name="dense"),
            make(
                settings.embedding_learning_rate,
                decay=settings.weight_decay,
                name="tables",
            ),
        )
        for optimizer, variables in zip(
            self.optimizers, (self._dense, self._tables), strict=True
        ):
            optimizer.build(variables)
            optimizer.update_only(trained)
        negatives = getattr(model, "negatives", None)  # sequence models have none
        self._memory = None if negatives is None else negatives.memory
        self._signature = None if batch_spec is None else [batch_spec]
        self._compiled = tf.function(self._step, input_signature=self._signature)

    def start(
        self, phase: str, stage: int, state: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Begins a phase with fresh slots, or with those of a checkpoint.

        Training moves `FREE` entries, recovery those the stage kept.
        """
        rates = (self._settings.learning_rate, self._settings.embedding_learning_rate)
        share = 1.0 if phase == "train" else self._settings.recovery_rate
        for index, optimizer in enumerate(self.optimizers):
            optimizer.learning_rate = rates[index] * share
            optimizer.reset(FREE if phase == "train" else stage)
            for slot, variable in enumerate(optimizer.state() if state else ()):
                with device_of(variable):
                    variable.assign(state[f"{index}/{slot}"])  # type: ignore[index]
        if self._memory is not None:
            self._memory.reset()
            for name, variable in self._memory.state().items() if state else ():
                variable.assign(state[name])  # type: ignore[index]

    def state(self) -> dict[str, tf.Variable]:
        """Returns the optimizers' steps and slots, and a memory, for a checkpoint."""
        variables = {
            f"{index}/{slot}": variable
            for index, optimizer in enumerate(self.optimizers)
            for slot, variable in enumerate(optimizer.state())
        }
        if self._memory is not None:
            variables |= self._memory.state()
        return variables

    def __call__(self, batch: Mapping[str, Any]) -> tf.Tensor:
        """Trains on one batch; returns its mean loss, a scalar."""
        return self._compiled(batch)

    def _step(self, batch: Mapping[str, Any]) -> tf.Tensor:
        distinct = [
            shard
            for name in batch.get("rows", {})
            for shard in self.model.id_tables[name].tables
        ]
        if self._workers is None:
            loss, gradients = self._gradients(batch, training=True)
        else:
            loss, gradients = self._shared_gradients(self._workers, batch, distinct)
        split = len(self._dense)
        groups = (
            (self.optimizers[0], gradients[:split], self._dense),
            (self.optimizers[1], gradients[split:], self._tables),
        )
        for optimizer, part, variables in groups:
            pairs = [
                (gradient, variable)
                for gradient, variable in zip(part, variables, strict=True)
                if gradient is not None
            ]
            if pairs:
                optimizer.apply_gradients(pairs, distinct_rows=distinct)
        return loss

    def _gradients(
        self, batch: Mapping[str, Any], training: bool
    ) -> tuple[tf.Tensor, list[Any]]:
        variables = [*self._dense, *self._tables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            loss = self.model.compute_loss(batch, training=training)
        return loss, tape.gradient(loss, variables)

    def _shared_gradients(
        self, workers: Workers, batch: Mapping[str, Any], distinct: list[tf.Variable]
    ) -> tuple[tf.Tensor, list[Any]]:
        """Returns loss and gradients of a batch of which each worker does a part."""
        rows = tf.shape(batch["query"][QUERY_ID])[0]
        part = {**batch, PART: workers.part(rows)}
        loss, gradients = self._gradients(part, training=True)
        # Batches name the same table rows on all workers.
        variables = [*self._dense, *self._tables]
        return workers.add_up(loss, gradients, variables, same_rows=distinct)

    def fisher(self, batches: tf.data.Dataset) -> dict[str, np.ndarray]:
        """Returns summed squared batch gradients by parameter name.

        The diagonal of the empirical Fisher information, by batches instead of
        examples. Parameters outside this stage count as zero.
        """
        sums = {p.name: np.zeros(p.variable.shape) for p in self.model.owned_parameters}
        compute = tf.function(
            lambda batch: self._gradients(batch, training=False)[1],
            input_signature=self._signature,
        )
        for batch in batches:
            for name, gradient in zip(self._names, compute(batch), strict=True):
                if gradient is None:
                    continue
                sums[name] += np.square(tf.convert_to_tensor(gradient).numpy())
        return sums
