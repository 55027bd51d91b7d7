"""How gradients of several workers are added up, sparse ones row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# Tables of at most so many rows are sent whole: joining lists of rows takes further
# messages, whose delay costs more than 4,096 rows of 16 numbers.
SMALL_TABLE = 4096

Tensors = Sequence[tf.Tensor]


@dataclass(frozen=True)
class PackedGradient:
    """A gradient as one worker sends it.

    Attributes:
      added: tensors of the same shape on all workers; their sums are wanted.
      joined: tensors of any length; those of all workers one after the other are.
      unpack: makes the gradient of all workers from sums and joined lists.
    """

    added: tuple[tf.Tensor, ...]
    joined: tuple[tf.Tensor, ...]
    unpack: Callable[[Tensors, Tensors], Any]


def pack_gradient(
    gradient: Any, variable: tf.Variable, same_rows: bool
) -> PackedGradient:
    """Packs a gradient for its way to the other workers.

    A sparse sum has every row that any worker names, and no other one: optimizers
    leave rows alone that no worker has looked up.

    Args:
      gradient: dense, sparse, or `None` where the parameter has no part in the loss.
      variable: the parameter.
      same_rows: a sparse gradient names the same rows in the same order on all workers.

    Example:
      >>> table = tf.Variable(tf.zeros([4, 1]))
      >>> row = tf.IndexedSlices(tf.constant([[2.0]]), tf.constant([1]))
      >>> packed = pack_gradient(row, table, same_rows=False)
      >>> both = packed.unpack([2 * part for part in packed.added], [])
      >>> both.indices.numpy().tolist(), both.values.numpy().tolist()
      ([1], [[4.0]])
    """
    if gradient is None:
        return PackedGradient((), (), lambda added, joined: None)
    if not isinstance(gradient, tf.IndexedSlices):
        return PackedGradient((gradient,), (), lambda added, joined: added[0])
    if same_rows:
        return PackedGradient((gradient.values,), (), _with_rows(gradient))
    if variable.shape[0] <= SMALL_TABLE:
        return _small_table(gradient, variable)
    rows, numbers = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, numbers, tf.size(rows))
    return PackedGradient(
        (), (values, rows), lambda added, joined: tf.IndexedSlices(joined[0], joined[1])
    )


def _with_rows(gradient: tf.IndexedSlices) -> Callable[[Tensors, Tensors], Any]:
    def unpack(added: Tensors, joined: Tensors) -> tf.IndexedSlices:
        return tf.IndexedSlices(added[0], gradient.indices)

    return unpack


def _small_table(gradient: tf.IndexedSlices, variable: tf.Variable) -> PackedGradient:
    size, kind = variable.shape[0], gradient.indices.dtype
    named = tf.ones([tf.size(gradient.indices), 1], gradient.values.dtype)
    values = tf.math.unsorted_segment_sum(
        tf.concat([gradient.values, named], axis=1), gradient.indices, size
    )

    def unpack(added: Tensors, joined: Tensors) -> tf.IndexedSlices:
        rows = tf.where(added[0][:, -1] > 0)[:, 0]
        values = tf.gather(added[0][:, :-1], rows)
        return tf.IndexedSlices(values, tf.cast(rows, kind))

    return PackedGradient((values,), (), unpack)
