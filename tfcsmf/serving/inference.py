"""Predict on a loaded model, with TensorFlow Serving's checks.

REST and gRPC share it: both hand over tensors by input name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfcsmf.serving.servable import DEFAULT_SIGNATURE
from tfcsmf.serving.status import Code, RequestError, invalid

Tensors = dict[str, np.ndarray]
# A message may leave values out, which are filled in, of tensors up to that size.
_MAX_FILLED = 2**24
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


class Runner(Protocol):
    """What runs a graph: a `Servable`, or a batcher before it."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Signature definitions by name."""

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """See `Servable.run`."""


def input_types(model: Runner, signature_name: str) -> dict[str, int]:
    """Returns the data types of a signature's inputs, as REST requests need them.

    Raises:
      RequestError: if there is no such signature.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    inputs = model.signatures[name].inputs
    return {alias: inputs[alias].dtype for alias in sorted(inputs)}


def from_proto(name: str, proto: Any) -> np.ndarray:
    """Returns the tensor of a request, read as TensorFlow Serving reads it.

    Raises:
      RequestError: if it is damaged, or so large that its values cannot all have been
        sent: a few bytes could name any size.
    """
    wrong = invalid(f"tensor parsing error: {name}")
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if math.prod(sizes) > max(_MAX_FILLED, proto.ByteSize()):
        raise wrong
    try:
        kind = tf.as_dtype(proto.dtype)
        return tf.io.parse_tensor(proto.SerializeToString(), kind).numpy()
    except (TypeError, tf.errors.OpError):
        raise wrong from None


def predict(
    model: Runner,
    signature_name: str,
    inputs: Mapping[str, Any],
    output_filter: Sequence[str] = (),
) -> tuple[Tensors, dict[str, int]]:
    """Runs a signature.

    Args:
      model: the loaded model.
      signature_name: "" for the default one.
      inputs: tensors by input name, as arrays or messages.
      output_filter: names of the wanted outputs; empty: all.

    Returns:
      The outputs and their data types, by name.

    Raises:
      RequestError: if names do not match the signature.
      tf.errors.OpError: if the graph refuses the values.
    """
    name = signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise RequestError(
            Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
        )
    signature = model.signatures[name]
    if signature.method_name not in (PREDICT, CLASSIFY, REGRESS):
        raise RequestError(
            Code.INTERNAL,
            "Expected prediction signature method_name to be one of "
            f"{{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: {signature.method_name}",
        )
    feeds = _feeds(signature, inputs)
    aliases = _outputs(signature, output_filter)
    names = {alias: signature.outputs[alias].name for alias in aliases}
    values = model.run(feeds, names.values())
    types = {alias: signature.outputs[alias].dtype for alias in aliases}
    return {alias: values[tensor] for alias, tensor in names.items()}, types


def _feeds(signature: Any, inputs: Mapping[str, Any]) -> Tensors:
    defaults = getattr(signature, "defaults", {})
    sent, known = set(inputs), set(signature.inputs)
    extra, missing = sent - known, known - sent - set(defaults)
    if len(sent) != len(known) and (extra or missing):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{_join(sent)}}}) != len({{{_join(known)}}}). Sent extra: "
            f"{{{_join(extra)}}}. Missing but required: {{{_join(missing)}}}."
        )
    if extra:
        raise invalid(
            f"input tensor alias not found in signature: {min(extra)}. Inputs expected "
            f"to be in the set {{{_join(known)}}}."
        )
    feeds: Tensors = {}
    for alias in sorted(known):
        if alias in inputs:
            value = inputs[alias]
            array = value if isinstance(value, np.ndarray) else from_proto(alias, value)
        else:
            array = tf.make_ndarray(defaults[alias])
        feeds[signature.inputs[alias].name] = array
    return feeds


def _outputs(signature: Any, wanted: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for alias in wanted:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs "
                f"expected to be in the set {{{_join(signature.outputs)}}}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen or sorted(signature.outputs)


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
