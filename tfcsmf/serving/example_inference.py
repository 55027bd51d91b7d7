"""Classify, regress and both on `tf.Example`s, with TensorFlow Serving's checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2

from tfcsmf.serving.inference import CLASSIFY, REGRESS, Runner, Tensors
from tfcsmf.serving.servable import DEFAULT_SIGNATURE
from tfcsmf.serving.status import Code, RequestError, invalid


def classify(
    model: Runner, signature_name: str, examples: list[bytes]
) -> list[list[tuple[bytes, float]]]:
    """Returns (label, score) pairs per serialized example.

    Raises:
      RequestError: if the signature is none for classification, or its outputs
        are not [batch, classes].
    """
    signature = _signature(model, signature_name)
    fetches = _classify_fetches(signature)
    values = _run(model, [signature], examples, fetches.values())
    return _classify_rows(fetches, values, len(examples))


def _classify_fetches(signature: Any) -> dict[str, str]:
    """The tensors of "classes" and "scores", if they are there, by alias."""
    _check_method(signature, CLASSIFY, "classification")
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
    return outputs


def _classify_rows(
    fetches: Mapping[str, str], values: Tensors, count: int
) -> list[list[tuple[bytes, float]]]:
    columns = {
        alias: _class_column(alias, values[name], count)
        for alias, name in fetches.items()
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
    signature = _signature(model, signature_name)
    fetches = _regress_fetches(signature)
    values = _run(model, [signature], examples, fetches.values())
    return _regress_values(fetches, values, len(examples))


def _regress_fetches(signature: Any) -> dict[str, str]:
    _check_method(signature, REGRESS, "regression")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "outputs" not in signature.outputs:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            f"No regression outputs found in SignatureDef: {_debug(signature)}",
        )
    return {"outputs": signature.outputs["outputs"].name}


def _regress_values(
    fetches: Mapping[str, str], values: Tensors, count: int
) -> list[float]:
    value = values[fetches["outputs"]]
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, "
            "1] but got " + _shape_text(value)
        )
    if value.shape[0] != count:
        raise invalid(
            "Input batch size did not match output batch size: "
            f"{count} vs. {value.shape[0]}"
        )
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type_name(value)}")
    return value.ravel().tolist()


def infer(
    model: Runner, tasks: Sequence[tuple[str, str]], examples: list[bytes]
) -> list[Any]:
    """Runs several signatures on the same examples in one run of the graph.

    Args:
      model: the loaded model.
      tasks: signature name ("": the default one) and method name of each.
      examples: serialized.

    Returns:
      For each task what `classify` or `regress` return.

    Raises:
      RequestError: if a signature is asked for twice, is not there or is none for the
        method; see also `classify` and `regress`.
    """
    wanted: dict[str, tuple[Any, dict[str, str]]] = {}
    for signature_name, method in tasks:
        name = signature_name or DEFAULT_SIGNATURE
        if name in wanted:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in model.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        signature = model.signatures[name]
        if method == CLASSIFY:
            wanted[name] = signature, _classify_fetches(signature)
        elif method == REGRESS:
            wanted[name] = signature, _regress_fetches(signature)
        else:
            raise RequestError(
                Code.UNIMPLEMENTED, f"Unsupported signature method_name: {method}"
            )
    fetches = [tensor for _, named in wanted.values() for tensor in named.values()]
    signatures = [signature for signature, _ in wanted.values()]
    values = _run(model, signatures, examples, fetches)
    results: list[Any] = []
    for (_, method), (_, named) in zip(tasks, wanted.values(), strict=True):
        finish = _classify_rows if method == CLASSIFY else _regress_values
        results.append(finish(named, values, len(examples)))
    return results


def _signature(model: Runner, signature_name: str) -> Any:
    name = signature_name or DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return model.signatures[name]


def _check_method(signature: Any, method: str, what: str) -> None:
    if signature.method_name != method:
        raise invalid(
            f"Expected {what} signature method_name to be {method}. Was: "
            f"{signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            f"No {what} inputs found in SignatureDef: {_debug(signature)}",
        )


def _run(
    model: Runner,
    signatures: Iterable[Any],
    examples: list[bytes],
    fetches: Iterable[str],
) -> Tensors:
    if not examples:
        raise invalid("Input is empty.")
    values = np.empty(len(examples), object)
    values[:] = examples
    names = {signature.inputs["inputs"].name for signature in signatures}
    return model.run(dict.fromkeys(names, values), fetches)


def _type_name(value: np.ndarray) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(value.dtype).as_datatype_enum)


def _shape_text(value: np.ndarray) -> str:
    return "[" + ",".join(map(str, value.shape)) + "]"


def _debug(signature: Any) -> str:
    return text_format.MessageToString(signature)
