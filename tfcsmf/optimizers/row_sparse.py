"""Adam and Adagrad that touch only looked-up rows and entries of the stage.

Stock Keras Adam turns the sparse gradient of an embedding table into an update of
the whole table, so the time of a step grows with the catalogue. Here an update
costs as much as the rows it touches. Freezing is done on the *update*, not on
the gradient: neither momentum nor weight decay can move an entry that belongs to
another stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tfcsmf.towers.ownership import FREE, OwnedParameter
from tfcsmf.towers.shards import device_of


class _MaskedOptimizer(tf.keras.optimizers.Optimizer):
    """Row-sparse updates under an update mask; subclasses give the rule.

    Args:
      learning_rate: step size > 0.
      decay: decoupled weight decay of touched rows and dense kernels, >= 0; biases
        do not decay.
    """

    def __init__(self, learning_rate: float, decay: float, name: str) -> None:
        # XLA cannot compile the sparse rows; TF's own kernels can.
        # Keras' own decay, even one of 0, would write every row at every step.
        super().__init__(name=name, jit_compile=False, weight_decay=None)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.decay = decay
        self._owner_of: Callable[[tf.Variable], tf.Variable | None] = lambda _: None
        self._distinct_rows: set[Any] = set()
        # A variable, so that training and recovery share one compiled step.
        self.updatable_owner = tf.Variable(FREE, trainable=False, dtype=tf.int8)

    def update_only(self, parameters: Sequence[OwnedParameter]) -> None:
        """Restricts updates of these parameters to entries of `updatable_owner`.

        That is `FREE` until `reset` chooses another one.
        """
        # A closure: owners belong to the model, not to the optimizer's own state.
        owners = {p.variable.ref(): p.owner for p in parameters}
        self._owner_of = lambda variable: owners.get(variable.ref())

    def reset(self, updatable_owner: int) -> None:
        """Zeroes all slots and the step, and chooses the entries to update."""
        self.updatable_owner.assign(updatable_owner)
        self.iterations.assign(0)
        for slot, initial in self._slots():
            with device_of(slot):
                slot.assign(tf.fill(slot.shape, tf.cast(initial, slot.dtype)))

    def _add_slots(
        self, variables: Sequence[tf.Variable], name: str, initial: float
    ) -> list[tf.Variable]:
        """Creates a slot beside each variable."""
        slots = []
        for variable in variables:
            with device_of(variable):
                values = tf.fill(variable.shape, tf.cast(initial, variable.dtype))
                slots.append(
                    self.add_variable_from_reference(variable, name, None, values)
                )
        return slots

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, tf.Variable]],
        name: str | None = None,
        distinct_rows: Iterable[tf.Variable] = (),
    ) -> tf.Variable:
        """Applies gradients; see Keras.

        Args:
          grads_and_vars: (gradient, variable) pairs.
          name: of the name scope.
          distinct_rows: variables whose sparse gradient names no row twice, which
            saves adding rows up.
        """
        self._distinct_rows = {variable.ref() for variable in distinct_rows}
        try:
            return super().apply_gradients(grads_and_vars, name)
        finally:
            self._distinct_rows = set()

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        # Keras calls this for all variables at once; `update_step` does it.
        return grads

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Applies one gradient, dense or sparse, where the variable is."""
        with device_of(variable):
            self._masked_update(gradient, variable)

    def _masked_update(self, gradient: Any, variable: tf.Variable) -> None:
        owner = self._owner_of(variable)
        sparse = isinstance(gradient, tf.IndexedSlices)
        if sparse and variable.ref() not in self._distinct_rows:
            (gradient,) = super()._deduplicate_sparse_grad([gradient])
        rows = gradient.indices if sparse else None
        values = gradient.values if rows is not None else gradient
        update = self._update(values, rows, variable)
        if self.decay and variable.shape.rank > 1:  # not of biases
            current = variable if rows is None else tf.gather(variable, rows)
            rate = tf.cast(self.learning_rate, variable.dtype)
            update += rate * self.decay * current
        if owner is not None:
            if rows is not None and owner.shape[0] == variable.shape[0]:
                owner = tf.gather(owner, rows)
            # where(), not a product: a non-finite update must not leak through 0.
            update = tf.where(tf.equal(owner, self.updatable_owner), update, 0.0)
        if rows is None:
            variable.assign_sub(update)
        else:
            # Half the time of scatter_sub; rows are distinct here.
            _store(variable, rows, tf.gather(variable, rows) - update)

    def _update(
        self, values: tf.Tensor, rows: tf.Tensor | None, variable: tf.Variable
    ) -> tf.Tensor:
        raise NotImplementedError

    def state(self) -> list[tf.Variable]:
        """Returns what a checkpoint has to hold: the step and all slots."""
        return [self.iterations, *(slot for slot, _ in self._slots())]

    def _slots(self) -> list[tuple[tf.Variable, float]]:
        """Returns every slot with its initial value."""
        raise NotImplementedError

    def _slot_of(self, slots: list[tf.Variable], variable: tf.Variable) -> tf.Variable:
        return slots[self._index_dict[self._var_key(variable)]]


def _blend(
    slot: tf.Variable, rows: tf.Tensor | None, rate: float, values: tf.Tensor
) -> tf.Tensor:
    """Moves a slot (or its rows) to `rate * slot + (1 - rate) * values`."""
    current = slot if rows is None else tf.gather(slot, rows)
    blended = current + (1.0 - rate) * (values - current)
    _store(slot, rows, blended)
    return blended


def _store(slot: tf.Variable, rows: tf.Tensor | None, values: tf.Tensor) -> None:
    if rows is None:
        slot.assign(values)
    else:
        slot.scatter_update(tf.IndexedSlices(values, rows))


class RowAdam(_MaskedOptimizer):
    """Adam whose moments of a row move only when the row is touched ("lazy").

    Args:
      learning_rate: step size.
      beta_1: decay of the first moment.
      beta_2: decay of the second moment.
      epsilon: added to the root of the second moment.
      decay: decoupled weight decay of what is touched.

    Example:
      >>> table = tf.Variable(tf.ones([3, 1]))
      >>> optimizer = RowAdam(0.1)
      >>> row = tf.IndexedSlices(tf.constant([[2.0]]), tf.constant([1]))
      >>> _ = optimizer.apply_gradients([(row, table)])
      >>> [round(float(x), 3) for x in table[:, 0]]
      [1.0, 0.9, 1.0]

    References:
      Kingma and Ba, Adam, ICLR '15.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        decay: float = 0.0,
        name: str = "RowAdam",
    ) -> None:
        super().__init__(learning_rate, decay, name)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._m: list[tf.Variable] = []
        self._v: list[tf.Variable] = []

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates two slots per variable."""
        super().build(var_list)
        if not self._m:
            self._m = self._add_slots(var_list, "m", 0.0)
            self._v = self._add_slots(var_list, "v", 0.0)

    def _slots(self) -> list[tuple[tf.Variable, float]]:
        return [(slot, 0.0) for slot in [*self._m, *self._v]]

    def _update(
        self, values: tf.Tensor, rows: tf.Tensor | None, variable: tf.Variable
    ) -> tf.Tensor:
        first = _blend(self._slot_of(self._m, variable), rows, self.beta_1, values)
        second = _blend(
            self._slot_of(self._v, variable), rows, self.beta_2, tf.square(values)
        )
        step = tf.cast(self.iterations + 1, values.dtype)
        correction = tf.sqrt(1.0 - tf.pow(self.beta_2, step)) / (
            1.0 - tf.pow(self.beta_1, step)
        )
        rate = tf.cast(self.learning_rate, values.dtype) * correction
        return rate * first / (tf.sqrt(second) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "learning_rate": float(self.learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "decay": self.decay,
            "name": self.name,
        }


class RowAdagrad(_MaskedOptimizer):
    """Adagrad on touched rows.

    Args:
      learning_rate: step size.
      initial_accumulator: start of the sum of squared gradients, > 0.
      epsilon: added to the root of that sum.
      decay: decoupled weight decay of what is touched.

    References:
      Duchi et al., Adaptive subgradient methods, JMLR 2011.
    """

    def __init__(
        self,
        learning_rate: float = 1e-2,
        initial_accumulator: float = 0.1,
        epsilon: float = 1e-7,
        decay: float = 0.0,
        name: str = "RowAdagrad",
    ) -> None:
        super().__init__(learning_rate, decay, name)
        self.initial_accumulator = initial_accumulator
        self.epsilon = epsilon
        self._sums: list[tf.Variable] = []

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates one slot per variable."""
        super().build(var_list)
        if not self._sums:
            self._sums = self._add_slots(var_list, "sum", self.initial_accumulator)

    def _slots(self) -> list[tuple[tf.Variable, float]]:
        return [(slot, self.initial_accumulator) for slot in self._sums]

    def _update(
        self, values: tf.Tensor, rows: tf.Tensor | None, variable: tf.Variable
    ) -> tf.Tensor:
        slot = self._slot_of(self._sums, variable)
        current = slot if rows is None else tf.gather(slot, rows)
        sums = current + tf.square(values)
        _store(slot, rows, sums)
        rate = tf.cast(self.learning_rate, values.dtype)
        return rate * values / (tf.sqrt(sums) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "learning_rate": float(self.learning_rate),
            "initial_accumulator": self.initial_accumulator,
            "epsilon": self.epsilon,
            "decay": self.decay,
            "name": self.name,
        }
