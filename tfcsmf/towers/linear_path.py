"""The linear path beside the hidden layers, which starts as the identity."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

# Share of a Glorot draw that rows of hidden activations start with, so that they add
# little to the linear path at first (our choice, not measured by itself).
_ACTIVATIONS = 0.1


def beside(activations: tf.Tensor, encodings: tf.Tensor) -> tf.Tensor:
    """Returns what an output layer sees: without hidden layers the encodings alone."""
    if activations is encodings:
        return encodings
    return tf.concat([activations, encodings], axis=1)


def identity_rows(rows: int, units: int, copies: int = 1) -> tf.Tensor:
    """Returns identities side by side, float [rows, units].

    Args:
      rows: inputs. If they are more than an identity has columns, the last ones
        have only zeros; if less, the last columns have.
      units: outputs, a multiple of `copies`.
      copies: identities.

    Example:
      >>> identity_rows(2, 4, 2).numpy().tolist()
      [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """
    return tf.tile(tf.eye(rows, units // copies), [1, copies])


def start_as_identity(
    kernel: tf.Variable,
    activations: int,
    embeddings: Iterable[slice],
    copies: int = 1,
) -> None:
    """Sets the initial values of a kernel that sees [activations; encodings].

    So at the start a vector is the sum of its embeddings, as that of item-to-item
    models is (our choice; CSMF says nothing of it). `docs/results.md` has what it
    brought together with other changes.

    Args:
      kernel: float [activations + encodings, units], with Glorot draws, which rows
        of features keep.
      activations: rows of hidden activations, whose draws are scaled down.
      embeddings: encodings that start as identities.
      copies: of the identity in each of them, side by side.
    """
    rows, units = kernel.shape
    value = tf.convert_to_tensor(kernel)
    parts = [_ACTIVATIONS * value[:activations]]
    at = activations
    for columns in embeddings:
        start, stop = activations + columns.start, activations + columns.stop
        parts += [value[at:start], identity_rows(stop - start, units, copies)]
        at = stop
    kernel.assign(tf.concat([*parts, value[at:rows]], axis=0))
