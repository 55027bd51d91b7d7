"""Predict requests in JSON to tensors.

The rules, the order in which they are checked and the texts are those of
TensorFlow Serving's REST API: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from tfcsmf.serving import json_text, json_values
from tfcsmf.serving.json_values import BOOL, FLOATS, INTEGERS, STRING
from tfcsmf.serving.status import RequestError, invalid

Tensors = dict[str, np.ndarray]
# Data type by input name.
Types = Mapping[str, int]


@dataclass(frozen=True)
class PredictBody:
    """A parsed predict request.

    Attributes:
      signature_name: "" where not given.
      inputs: the tensors by input name.
      row: whether it came in row form (`instances`), so the answer does too.
    """

    signature_name: str
    inputs: Tensors
    row: bool


def signature_of(document: dict[str, Any]) -> str:
    """Returns `signature_name` of a request, "" where there is none.

    Raises:
      RequestError: if it is not a string.
    """
    value = document.get("signature_name", "")
    if not isinstance(value, str):
        raise invalid(
            f"JSON Value: {json_text.to_text(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return value


def read_predict(body: bytes, types_of: Callable[[str], Types]) -> PredictBody:
    """Reads a predict request.

    Args:
      body: the JSON text.
      types_of: signature name ("": the default one) to its input types; may raise
        where model or signature do not exist.

    Raises:
      RequestError: for anything that does not fit.
    """
    document = json_text.parse(body)
    signature = signature_of(document)
    types = types_of(signature)
    if not types:
        raise invalid(
            f"Failed to get input map for signature: {signature or 'DEFAULT'}"
        )
    row, column = "instances" in document, "inputs" in document
    text = json_text.to_text
    if row and column:
        raise invalid(
            f"JSON Value: {text(document)} Not formatted correctly expecting only one "
            "of 'inputs' or 'instances' keys to exist "
        )
    if column:
        return PredictBody(signature, read_inputs(document["inputs"], types), False)
    if not row:
        raise invalid("Missing 'inputs' or 'instances' key")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(
            f"JSON Value: {text(document)} Expecting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid(f"JSON Value: {text(document)} No values in 'instances' array")
    return PredictBody(signature, read_instances(instances, types), True)


def read_inputs(value: Any, types: Types) -> Tensors:
    """Reads the column form: a tensor per input, or the only one.

    Raises:
      RequestError: see `read_predict`.
    """
    if not isinstance(value, dict) or json_values.is_base64(value):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        value = {next(iter(types)): value}
    for name in types:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _dense(value[name], dtype) for name, dtype in types.items()}


def read_instances(instances: list[Any], types: Types) -> Tensors:
    """Reads the row form: a list of values, or of objects with all inputs.

    Raises:
      RequestError: see `read_predict`.
    """
    first = instances[0]
    if not isinstance(first, dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    objects = _is_object(first)
    try:
        if objects:
            return _columns(instances, types)
        tensor = _fast(instances, next(iter(types.values())))
        if tensor is not None:
            return {next(iter(types)): tensor}
    except (KeyError, TypeError, AttributeError):
        pass  # not regular: the slow way says where
    return _Instances(types, objects).read(instances)


def _columns(instances: list[Any], types: Types) -> Tensors:
    names = set(types)
    if any(instance.keys() != names for instance in instances):
        raise KeyError
    result: Tensors = {}
    for name, dtype in types.items():
        tensor = _fast([instance[name] for instance in instances], dtype)
        if tensor is None:
            raise KeyError(name)
        result[name] = tensor
    return result


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not json_values.is_base64(value)


def _dense(value: Any, dtype: int) -> np.ndarray:
    tensor = _fast(value, dtype) if isinstance(value, list) else None
    return _slow(value, dtype) if tensor is None else tensor


def _fast(value: list[Any], dtype: int) -> np.ndarray | None:
    """Converts regular nested lists at once; None where anything is unusual."""
    level, shape = value, [len(value)]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list}:
            return None
        sizes = set(map(len, level))
        if len(sizes) != 1:
            return None
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    kinds = set(map(type, level))
    if dtype == STRING and kinds <= {str}:
        values: list[Any] = [json_values.to_bytes(text) for text in level]
    elif dtype == BOOL and kinds <= {bool}:
        values = level
    elif dtype in INTEGERS and kinds <= {int}:
        _, low, high = INTEGERS[dtype]
        if level and (min(level) < low or max(level) > high):
            return None
        values = level
    elif dtype in FLOATS and kinds <= {int, float}:
        values = level
    else:
        return None
    return json_values.to_array(values, dtype, tuple(shape))


def _slow(value: Any, dtype: int) -> np.ndarray:
    """Converts a value or nested lists, one by one, to say what does not fit."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    values: list[Any] = []
    _fill(value, 0, dtype, shape, values)
    return json_values.to_array(values, dtype, tuple(shape))


def _fill(
    value: Any, level: int, dtype: int, shape: list[int], values: list[Any]
) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise invalid(
                f"JSON Value: {json_text.to_text(value)} found at incorrect level: "
                f"{level + 1} in the JSON DOM. Expected at level: {rank}"
            )
        if not isinstance(value, dict):
            values.append(json_values.convert(value, dtype))
        elif dtype == STRING:
            values.append(json_values.decode_base64(value))
        else:
            raise json_values.type_error(value, dtype)
        return
    if level >= rank:
        raise invalid(
            f"Encountered list at unexpected level: {level} expected < {rank}"
        )
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for inner in value:
        _fill(inner, level + 1, dtype, shape, values)


class _Instances:
    """Reads rows one by one, to name the first that does not fit."""

    def __init__(self, types: Types, objects: bool) -> None:
        self._types = types
        self._objects = objects
        self._rows: dict[str, list[np.ndarray]] = {}

    def read(self, instances: list[Any]) -> Tensors:
        for index, instance in enumerate(instances):
            if self._objects != _is_object(instance):
                wanted = "object" if self._objects else "value/list"
                received = "list" if self._objects else "object"
                raise invalid(
                    f"Expecting {wanted} but got {received} at item {index} of input "
                    "list"
                )
            if self._objects:
                self._read_object(instance, index)
            else:
                where = f"Failed to process element: {index} of 'instances' list."
                self._add(instance, next(iter(self._types)), where)
        return {name: np.stack(rows) for name, rows in self._rows.items()}

    def _read_object(self, instance: dict[str, Any], index: int) -> None:
        where = f"Failed to process element: {index}"
        for name, value in instance.items():
            self._add(value, name, f"{where} key: {name} of 'instances' list.")
        if instance.keys() != set(self._types):
            raise invalid(
                f"{where} of 'instances' list. JSON object: "
                f"{json_text.to_text(instance)} keys must be equal to: "
                f"{','.join(sorted(self._types))}"
            )

    def _add(self, value: Any, name: str, where: str) -> None:
        try:
            if name not in self._types:
                raise invalid(f"JSON object: does not have named input: {name}")
            tensor = _dense(value, self._types[name])
            rows = self._rows.setdefault(name, [])
            if rows and rows[0].size != tensor.size:
                raise invalid(
                    f"Expecting tensor size: {rows[0].size} but got: {tensor.size}"
                )
            if rows and rows[0].shape != tensor.shape:
                raise invalid(
                    f"Expecting shape {_shape(rows[0])} but got: {_shape(tensor)}"
                )
            rows.append(tensor)
        except RequestError as error:
            raise invalid(f"{where} Error: {error}") from None


def _shape(tensor: np.ndarray) -> str:
    return "[" + ",".join(map(str, tensor.shape)) + "]"
