"""The linear path beside the hidden layers, which starts as a sum of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

# Share of a Glorot draw that what stands beside a linear path, or a shortcut, starts
# with, so that it adds little at first (our choice; docs/heterrec.md has what it does
# for deep stacks).
SMALL = 0.1


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


def projection(number: int, rows: int, units: int) -> tf.Tensor:
    """Returns the start of an item feature's encoding, float [rows, units].

    A fixed draw with orthonormal rows (columns, if there are more rows), so that both
    towers send a feature the same way: at the start, items whose features are like
    those in a history have larger inner products with it.

    Args:
      number: of the feature.
      rows: columns of its encoding.
      units: outputs.

    Example:
      >>> rows = projection(0, 2, 5).numpy()
      >>> (rows @ rows.T).round(4).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    draws = np.random.default_rng([31, number]).normal(size=(rows, units))
    left, _, right = np.linalg.svd(draws, full_matrices=False)
    return tf.constant(left @ right, tf.float32)


def item_start(sizes: Sequence[int], units: int, copies: int = 1) -> tf.Tensor:
    """Returns the start of an item's encodings, float [sum of sizes, units].

    Args:
      sizes: columns of the encoding of its id, and of every feature.
      units: outputs, a multiple of `copies`.
      copies: equal parts of the output.
    """
    parts = [identity_rows(sizes[0], units, copies)]
    for number, size in enumerate(sizes[1:]):
        own = projection(number, size, units // copies)
        parts.append(tf.tile(own, [1, copies]))
    return tf.concat(parts, axis=0)


def start_linear(
    kernel: tf.Variable, activations: int, starts: Iterable[tuple[int, tf.Tensor]]
) -> None:
    """Sets the initial values of a kernel that sees [activations; encodings].

    So at the start a vector is the sum of its embeddings, as that of item-to-item
    models is (our choice; CSMF says nothing of it). `docs/results.md` has what it
    brought together with other changes.

    Args:
      kernel: float [activations + encodings, units], with Glorot draws, which rows
        that no start is given for keep.
      activations: rows of hidden activations, whose draws are scaled down.
      starts: first encoding and values of some of its rows, in order.
    """
    value = kernel.numpy()
    value[:activations] *= SMALL
    for first, rows in starts:
        value[activations + first : activations + first + len(rows)] = rows
    kernel.assign(value)
