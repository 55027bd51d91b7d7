"""Single JSON values to tensor values, under TensorFlow Serving's type rules."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import numpy as np

from tfcsmf.serving.json_text import to_text, type_name
from tfcsmf.serving.status import Code, RequestError, invalid

# DataType of TensorFlow by the names its error messages use.
NAMES = {
    1: "float",
    2: "double",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "half",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
}
FLOAT, STRING, BOOL = 1, 7, 10
FLOATS: dict[int, Any] = {FLOAT: np.float32, 2: np.float64}
_INT32 = (-(2**31), 2**31 - 1)
INTEGERS: dict[int, tuple[Any, int, int]] = {
    3: (np.int32, *_INT32),
    # Read as 32 bits and then cut, as there.
    4: (np.uint8, *_INT32),
    5: (np.int16, *_INT32),
    6: (np.int8, *_INT32),
    9: (np.int64, -(2**63), 2**63 - 1),
    22: (np.uint32, 0, 2**32 - 1),
    23: (np.uint64, 0, 2**64 - 1),
}
# NumPy's limit; TensorFlow's own is 254.
_MAX_RANK = 64
# Dots are padding too, there.
_BASE64 = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


def name(dtype: int) -> str:
    """Returns the name of a TensorFlow data type."""
    return NAMES.get(dtype, f"unknown dtype enum ({dtype})")


def is_base64(value: Any) -> bool:
    """Tells whether a value is `{"b64": "..."}`."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and isinstance(value.get("b64"), str)
    )


def decode_base64(value: Any) -> bytes:
    """Returns the bytes of `{"b64": "..."}`.

    Raises:
      RequestError: if it is none.
    """
    if not is_base64(value):
        raise invalid(
            f"JSON Value: {to_text(value)} not formatted correctly for base64 data"
        )
    text = b"".join(value["b64"].encode("utf-8", "surrogateescape").split())
    found = _BASE64.fullmatch(text)
    if found:
        data, padding = found.groups()
        missing = -len(data) % 4
        if missing < 3 and len(padding) in (0, missing):
            try:
                return base64.b64decode(data + b"=" * missing)
            except binascii.Error:
                pass
    raise invalid("Unable to base64 decode")


def to_bytes(text: str) -> bytes:
    """Returns the bytes of a JSON string, also of one that is not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that was written as an escape
        return text.encode("utf-8", "surrogatepass")


def convert(value: Any, dtype: int) -> Any:
    """Returns one tensor value.

    Raises:
      RequestError: if its JSON type does not fit, or the data type has no JSON form.
    """
    fits = True
    if dtype in FLOATS:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif dtype in INTEGERS:
        _, low, high = INTEGERS[dtype]
        fits = type(value) is int and low <= value <= high
    elif dtype == STRING:
        fits = isinstance(value, str)
    elif dtype == BOOL:
        fits = isinstance(value, bool)
    else:
        raise RequestError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {to_text(value)} to type: {name(dtype)}",
        )
    if not fits:
        raise type_error(value, dtype)
    return to_bytes(value) if dtype == STRING else value


def to_float(values: list[Any], dtype: int) -> np.ndarray:
    """Returns numbers as floats: rounded, and infinite where they are too large."""
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(FLOATS[dtype])


def type_error(value: Any, dtype: int) -> RequestError:
    """Returns the error of a value that does not fit its tensor."""
    return invalid(
        f"JSON Value: {to_text(value)} Type: {type_name(value)} is not of expected "
        f"type: {name(dtype)}"
    )


def to_array(values: list[Any], dtype: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the tensor of converted values.

    Raises:
      RequestError: if there are more dimensions than arrays can have.
    """
    if len(shape) > _MAX_RANK:
        raise invalid(
            f"Lists are nested {len(shape)} levels deep; at most {_MAX_RANK} are "
            "supported"
        )
    if dtype == STRING:
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    if dtype in INTEGERS:
        kind, low, _ = INTEGERS[dtype]
        wide = np.uint64 if dtype == 23 else np.int64
        return np.array(values, wide).astype(kind).reshape(shape)
    if dtype in FLOATS:
        return to_float(values, dtype).reshape(shape)
    return np.array(values, np.bool_).reshape(shape)
