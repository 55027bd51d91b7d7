"""Tensors to JSON answers, in the forms of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np

from tfcsmf.serving import json_text, json_values
from tfcsmf.serving.json_values import BOOL, FLOATS, INTEGERS, STRING
from tfcsmf.serving.status import invalid

Tensors = dict[str, np.ndarray]
# Data type by output name.
Types = Mapping[str, int]


def write_predict(outputs: Tensors, types: Types, row: bool) -> bytes:
    """Writes the answer in the form of its request.

    One output stands alone; of several there is an object, in row form one per
    row. Strings of outputs named `..._bytes` are written as base64.

    Args:
      outputs: the tensors by output name.
      types: their data types.
      row: see `PredictBody`.

    Raises:
      RequestError: if outputs have no common first dimension (row form), or no
        JSON form.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    names = sorted(outputs)
    if row:
        return _object_of("predictions", _rows(outputs, types, names))
    columns = {
        name: json_text.nest(
            _values(name, outputs[name], types[name]), outputs[name].shape
        )
        for name in names
    }
    if len(names) == 1:
        return _object_of("outputs", columns[names[0]])
    members = [f"{json_text.string(name)}: {columns[name]}" for name in names]
    return _object_of(
        "outputs", "{\n        " + ",\n        ".join(members) + "\n    }"
    )


def _object_of(name: str, text: str) -> bytes:
    return json_text.encode(f'{{\n    "{name}": {text}\n}}')


def _rows(outputs: Tensors, types: Types, names: list[str]) -> str:
    size = -1
    for name in names:
        shape = outputs[name].shape
        if not shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (-1, shape[0]):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {shape[0]} "
                f"expecting: {size}"
            )
        size = shape[0]
    columns = []
    for name in names:
        tensor = outputs[name]
        values = _values(name, tensor, types[name])
        step = tensor.size // size if size else 0
        texts = [
            json_text.nest(values[row * step : (row + 1) * step], tensor.shape[1:])
            for row in range(size)
        ]
        columns.append(texts)
    if len(names) == 1:
        return "[" + ", ".join(columns[0]) + "]"
    keys = [json_text.string(name) for name in names]
    rows = (
        "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, row, strict=True)) + "}"
        for row in zip(*columns, strict=True)
    )
    return "[" + ",\n        ".join(rows) + "]"


def _values(name: str, tensor: np.ndarray, dtype: int) -> list[str]:
    if dtype in FLOATS:
        return json_text.decimals(tensor)
    if dtype in INTEGERS:
        return list(map(str, tensor.ravel().tolist()))
    if dtype == BOOL:
        return ["true" if value else "false" for value in tensor.ravel().tolist()]
    if dtype != STRING:
        raise invalid(
            "Failed to write JSON value for tensor type: " + json_values.name(dtype)
        )
    values = tensor.ravel().tolist()
    if name.endswith("_bytes"):
        return [
            f'{{"b64": "{base64.b64encode(value).decode("ascii")}"}}'
            for value in values
        ]
    return [
        json_text.string(value.decode("utf-8", "surrogateescape")) for value in values
    ]


def write_classification(rows: list[list[tuple[bytes, float]]]) -> bytes:
    """Writes (label, score) pairs per example.

    Raises:
      RequestError: if there is no example.
    """
    if not rows:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    texts = []
    for pairs in rows:
        scores = json_text.decimals(np.array([score for _, score in pairs], np.float32))
        labels = [
            json_text.string(label.decode("utf-8", "surrogateescape"))
            for label, _ in pairs
        ]
        members = [f"[{a}, {b}]" for a, b in zip(labels, scores, strict=True)]
        texts.append("[" + ", ".join(members) + "]")
    return _object_of("results", "[" + ", ".join(texts) + "]")


def write_regression(values: list[float]) -> bytes:
    """Writes a number per example.

    Raises:
      RequestError: if there is no example.
    """
    if not values:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    texts = json_text.decimals(np.array(values, np.float32))
    return _object_of("results", "[" + ", ".join(texts) + "]")
