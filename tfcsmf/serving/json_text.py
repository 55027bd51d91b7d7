"""JSON in and out as TensorFlow Serving reads and writes it."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from tfcsmf.serving.json_dialect import standard
from tfcsmf.serving.json_scanner import MAX_INT, MIN_INT, Scanner, to_double
from tfcsmf.serving.json_scanner import error as parse_error
from tfcsmf.serving.status import RequestError, invalid

# Longest JSON value that is repeated in an error message.
_MAX_ECHO = 10_000
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_ESCAPES = {
    '"': '\\"',
    "\\": r"\\",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
}
_DECIMAL = re.compile(r"[.enN]")  # has a fraction, an exponent, or is no number
# Largest invalid document the scanner looks at: it takes about a second for it.
_MAX_SCAN = 2**20
# Every digit is a 0 to look for long numbers, and what may precede one is a space.
_SHAPES = bytes.maketrans(b"123456789E[,:-\t\r\n", b"000000000e       ")
_LONG = b" " + b"0" * 19
# What the standard library says, in RapidJSON's words.
_WORDS = {
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Expecting ','": "Missing a comma or ] after an array element.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid": "Invalid escape character in string.",
}


def parse(data: bytes) -> dict[str, Any]:
    """Parses the body of a request.

    `NaN`, `Infinity` and `Inf` are numbers; of equal names in an object the first
    counts; bytes that are not UTF-8 are kept as surrogate escapes.

    Raises:
      RequestError: if it is not a JSON object.

    Example:
      >>> parse(b'{"a": [1, NaN]}')
      {'a': [1, nan]}
    """
    if not data:
        raise invalid("JSON Parse error: The document is empty")
    value = _parse(data)
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {to_text(value)} Is not object")
    return value


def _parse(data: bytes) -> Any:
    large = _has_large_numbers(data)
    try:
        return json.loads(
            standard(data).decode("utf-8", "surrogateescape"),
            object_pairs_hook=_first_wins,
            parse_float=to_double if large else None,
            parse_int=_integer if large else None,
        )
    except (ValueError, OverflowError, RecursionError, RequestError) as error:
        if len(data) > _MAX_SCAN:
            raise _explained(error, data) from None
    # It says what is wrong and where, in RapidJSON's words.
    return Scanner(data).document()


def _has_large_numbers(data: bytes) -> bool:
    """Tells whether a double or 64 bits may be too small for a number."""
    shapes = data.translate(_SHAPES, b"+")
    return b"0e000" in shapes or _LONG in shapes


def _explained(error: Exception, data: bytes) -> RequestError:
    """What is wrong with a large document, and about where."""
    if isinstance(error, RequestError):
        return error
    if not data.strip(b" \t\r\n"):
        return parse_error("The document is empty.", len(data))
    if isinstance(error, OverflowError):
        place = data.find(str(error).encode())
        return parse_error("Number too big to be stored in double.", place)
    if isinstance(error, json.JSONDecodeError):
        before = error.doc[: error.pos]
        words = (text for start, text in _WORDS.items() if error.msg.startswith(start))
        offset = len(before.encode("utf-8", "surrogateescape"))
        return parse_error(next(words, "Invalid value."), offset)
    return invalid("JSON Parse error: the document is nested too deeply")


def _integer(text: str) -> int | float:
    value = int(text) if len(text) < 25 else MAX_INT + 1
    return value if MIN_INT <= value <= MAX_INT else to_double(text)


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    return result if len(result) == len(pairs) else dict(reversed(pairs))


def type_name(value: Any) -> str:
    """Returns the JSON type of a value as error messages name it."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names: dict[type, str] = {dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def to_text(value: Any) -> str:
    r"""Returns a JSON value as error messages repeat it; long ones are cut.

    Within a list or object RapidJSON writes numbers, and nothing more once it has
    come to one that is not finite.

    Example:
      >>> to_text(1e-5), to_text([])
      ('1e-05', '[]')
      >>> to_text([1e-5, float("nan"), 1])
      '[\n    0.00001,\n    '
    """
    if isinstance(value, float):
        single = abs(value) <= float(np.finfo(np.float32).max)
        return decimals(np.array([value], np.float32 if single else np.float64))[0]
    echo = _Echo()
    echo.write(value, "\n")
    text = "".join(echo.parts)
    return text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "..."


class _Echo:
    """Collects the text of a value, until it is long enough."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._size = 0

    def write(self, value: Any, line: str) -> bool:
        """Adds a value; False if nothing is to follow."""
        if isinstance(value, str):
            return self._put(string(value))
        if isinstance(value, float):
            return math.isfinite(value) and self._put(_number(value))
        if not isinstance(value, dict | list) or not value:
            return self._put(json.dumps(value))
        brackets = "{}" if isinstance(value, dict) else "[]"
        inner = line + "    "
        for index, item in enumerate(value):
            name = ""
            if isinstance(value, dict):
                name, item = string(item) + ": ", value[item]
            lead = ("," if index else brackets[0]) + inner + name
            if not (self._put(lead) and self.write(item, inner)):
                return False
        return self._put(line + brackets[1])

    def _put(self, text: str) -> bool:
        self.parts.append(text)
        self._size += len(text)
        return self._size <= _MAX_ECHO


def _number(value: float) -> str:
    """Returns the shortest decimal of a double in RapidJSON's notation."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    point = len(digits) + int(exponent) if value else 1
    if len(text) <= point <= 21:
        text = text.ljust(point, "0") + ".0"
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + text
    else:
        text = text[0] + "." * (len(text) > 1) + text[1:] + f"e{point - 1}"
    return "-" * sign + text


def decimals(values: np.ndarray) -> list[str]:
    """Formats floating-point numbers, flattened: six digits if they suffice.

    Whole numbers get ".0"; the others are `NaN`, `Infinity` and `-Infinity`.

    Example:
      >>> decimals(np.float32([0.2, 3, 9e6, 1 / 3, np.nan, -np.inf]))
      ['0.2', '3.0', '9e+06', '0.333333343', 'NaN', '-Infinity']
    """
    flat = values.ravel()
    numbers = flat.tolist()
    texts = [f"{number:.6g}" for number in numbers]
    digits = 9 if values.dtype == np.float32 else 17
    with np.errstate(over="ignore"):
        again = np.array(list(map(float, texts))).astype(values.dtype)
    for index in np.flatnonzero(again != flat):
        texts[index] = f"{numbers[index]:.{digits}g}"
    texts = [text if _DECIMAL.search(text) else text + ".0" for text in texts]
    for index in np.flatnonzero(~np.isfinite(flat)):
        number = numbers[index]
        texts[index] = (
            "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"
        )
    return texts


def string(text: str) -> str:
    r"""Returns a quoted JSON string; only what has to be is escaped.

    Example:
      >>> print(string('say "\x1f"'))
      "say \"\u001F\""
    """
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    return _ESCAPES.get(character) or f"\\u{ord(character):04X}"


def nest(values: list[str], shape: tuple[int, ...]) -> str:
    """Joins formatted values into nested lists.

    Example:
      >>> nest(["1", "2", "3", "4"], (2, 2))
      '[[1, 2], [3, 4]]'
      >>> nest(["1"], ())
      '1'
    """
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        count = int(np.prod(shape[:axis], dtype=np.int64))
        values = [
            "[" + ", ".join(values[row * size : (row + 1) * size]) + "]"
            for row in range(count)
        ]
    return values[0]


def error_body(message: str) -> bytes:
    """Returns the body of an error."""
    return encode(f'{{\n    "error": {string(message)}\n}}')


def encode(text: str) -> bytes:
    """Returns the bytes of a JSON text; surrogate escapes become what they were."""
    # Lone surrogates other than those cannot be written at all.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")
