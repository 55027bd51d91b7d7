"""Tracing the signatures of an export, and checking what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfcsmf.retrieval.raw_inputs import argument_names

Raw = Mapping[str, tf.Tensor]


def filter_name(attribute: str) -> str:
    """Returns the input that filters by an attribute; its argument has no blank."""
    return f"filter {attribute}"


def checked_weights(weights: tf.Tensor, batch: tf.Tensor, count: int) -> tf.Tensor:
    """Refuses any shape but [batch, count]; [B, 1] would be taken for all objectives.

    Neither Python nor a server holds a request to the shapes of its signature. They
    are hidden here, or the check would be found true while tracing and left out.
    """
    rule = (
        "objective_weights should have the shape [B, S]: a row per query (B), in it a "
        f"weight per objective (S = {count}), in the order of `objectives`. Expected "
        "and received shape:"
    )
    return _checked_shape(weights, [batch, count], [None, count], rule)


def checked_k(k: tf.Tensor, batch: tf.Tensor, most: int) -> tf.Tensor:
    """Refuses any shape but [batch], and numbers out of range."""
    rule = "k should have the shape [B]: a number per query. Expected and received:"
    k = _checked_shape(k, [batch], [None], rule)
    rule = f"k should be from 1 to {most}, or 0 for that of the export. Received:"
    right = tf.reduce_all((k >= 0) & (k <= most))
    with tf.control_dependencies([tf.debugging.Assert(right, [rule, k])]):
        return tf.identity(k)


def _checked_shape(
    values: tf.Tensor, expected: list[Any], static: list[int | None], rule: str
) -> tf.Tensor:
    values = tf.raw_ops.PlaceholderWithDefault(input=values, shape=None)
    received = tf.shape(values)
    # Padded, because shapes of different length cannot be compared.
    size = len(expected) + 1
    padded = tf.concat([received, [-1] * size], axis=0)[:size]
    right = tf.reduce_all(tf.equal(padded, [*expected, -1]))
    check = tf.debugging.Assert(right, [rule, expected, received])
    with tf.control_dependencies([check]):
        return tf.ensure_shape(values, static)


def trace(
    function: Callable[[Raw], dict[str, tf.Tensor]],
    specs: dict[str, tf.TensorSpec],
    request: dict[str, tf.TensorSpec] | None = None,
) -> Any:
    """Traces a function of raw inputs under legal argument names."""
    request = request or {}
    names = argument_names(list(specs)) | {name: name for name in request}
    arguments = {
        names[name]: tf.TensorSpec(spec.shape, spec.dtype, name=names[name])
        for name, spec in (specs | request).items()
    }

    @tf.function(autograph=False)
    def call(**arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        return function({name: arguments[names[name]] for name in names})

    return call.get_concrete_function(**arguments)
