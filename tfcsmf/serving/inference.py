"""Predict, classify and regress on a loaded model, with TensorFlow Serving's checks.

REST and gRPC share it: both hand over tensors by input name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2

from tfcsmf.serving.servable import DEFAULT_SIGNATURE
from tfcsmf.serving.status import Code, RequestError, invalid

Tensors = dict[str, np.ndarray]
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


def predict(
    model: Runner,
    signature_name: str,
    inputs: Tensors,
    output_filter: Sequence[str] = (),
) -> tuple[Tensors, dict[str, int]]:
    """Runs a signature.

    Args:
      model: the loaded model.
      signature_name: "" for the default one.
      inputs: tensors by input name.
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


def _feeds(signature: Any, inputs: Tensors) -> Tensors:
    defaults = getattr(signature, "defaults", {})
    sent, known = set(inputs), set(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{_join(sent)}}}) != len({{{_join(known)}}}). Sent extra: "
            f"{{{_join(sent - known)}}}. Missing but required: "
            f"{{{_join(known - sent)}}}."
        )
    feeds: Tensors = {}
    for alias in sorted(known):
        if alias in inputs:
            value = inputs[alias]
        elif alias in defaults:
            value = tf.make_ndarray(defaults[alias])
        else:
            raise invalid(
                f"input tensor alias not found in signature: {_join(sent - known)}. "
                f"Inputs expected to be in the set {{{_join(known)}}}."
            )
        feeds[signature.inputs[alias].name] = value
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


def classify(
    model: Runner, signature_name: str, examples: list[bytes]
) -> list[list[tuple[bytes, float]]]:
    """Returns (label, score) pairs per serialized example.

    Raises:
      RequestError: if the signature is none for classification, or its outputs
        are not [batch, classes].
    """
    signature = _method(model, signature_name, CLASSIFY, "classification")
    _one_input(signature, "classification")
    if len(signature.outputs) not in (1, 2):
        raise invalid(
            f"Expected one or two output Tensors, found {len(signature.outputs)}"
        )
    outputs = {
        alias: signature.outputs[alias].name
        for alias in ("classes", "scores")
        if alias in signature.outputs
    }
    if not outputs:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {_debug(signature)}',
        )
    values = _run_examples(model, signature, examples, outputs.values())
    columns = {
        alias: _class_column(alias, values[name], len(examples))
        for alias, name in outputs.items()
    }
    if len({column.shape for column in columns.values()}) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{columns['classes'].shape[1]} vs. {columns['scores'].shape[1]}"
        )
    shape = next(iter(columns.values())).shape
    labels = columns.get("classes", np.full(shape, b"", object)).tolist()
    scores = columns.get("scores", np.zeros(shape, np.float32)).tolist()
    return [
        list(zip(row, numbers, strict=True))
        for row, numbers in zip(labels, scores, strict=True)
    ]


def _class_column(alias: str, value: np.ndarray, count: int) -> np.ndarray:
    if value.ndim != 2:
        raise invalid(
            "Expected Tensor shape: [batch_size num_classes] but got "
            + _shape_text(value)
        )
    wanted = "DT_STRING" if alias == "classes" else "DT_FLOAT"
    name = _type_name(value)
    if name != wanted:
        raise invalid(f"Expected {alias} Tensor of {wanted}. Got: {name}")
    if value.shape[0] != count:
        raise invalid(
            f"Expected {alias} output batch size of {count}. Got: {value.shape[0]}"
        )
    return value


def regress(model: Runner, signature_name: str, examples: list[bytes]) -> list[float]:
    """Returns a number per serialized example.

    Raises:
      RequestError: if the signature is none for regression, or its output is not
        [batch] or [batch, 1].
    """
    signature = _method(model, signature_name, REGRESS, "regression")
    _one_input(signature, "regression")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "outputs" not in signature.outputs:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            f"No regression outputs found in SignatureDef: {_debug(signature)}",
        )
    name = signature.outputs["outputs"].name
    value = _run_examples(model, signature, examples, [name])[name]
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, "
            "1] but got " + _shape_text(value)
        )
    if value.shape[0] != len(examples):
        raise invalid(
            "Input batch size did not match output batch size: "
            f"{len(examples)} vs. {value.shape[0]}"
        )
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type_name(value)}")
    return value.ravel().tolist()


def _method(model: Runner, signature_name: str, method: str, what: str) -> Any:
    name = signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature = model.signatures[name]
    if signature.method_name != method:
        raise invalid(
            f"Expected {what} signature method_name to be {method}. Was: "
            f"{signature.method_name}"
        )
    return signature


def _one_input(signature: Any, what: str) -> None:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            f"No {what} inputs found in SignatureDef: {_debug(signature)}",
        )


def _run_examples(
    model: Runner, signature: Any, examples: list[bytes], fetches: Iterable[str]
) -> dict[str, np.ndarray]:
    if not examples:
        raise invalid("Input is empty.")
    values = np.empty(len(examples), object)
    values[:] = examples
    return model.run({signature.inputs["inputs"].name: values}, fetches)


def _type_name(value: np.ndarray) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(value.dtype).as_datatype_enum)


def _shape_text(value: np.ndarray) -> str:
    return "[" + ",".join(map(str, value.shape)) + "]"


def _debug(signature: Any) -> str:
    return text_format.MessageToString(signature)
