"""JSON read byte by byte, with RapidJSON's verdicts, texts and byte offsets.

`json_text.parse` comes here only with invalid documents, to say what RapidJSON (1.1,
which TensorFlow Serving uses) says of them.
"""

from __future__ import annotations

import math
import re
from typing import Any

from tfcsmf.serving.status import RequestError, invalid

# RapidJSON recurses and ends the process on deeper documents; we answer.
MAX_DEPTH = 256
MAX_INT, MIN_INT = 2**64 - 1, -(2**63)
# No digit may follow from here on.
_LAST = 1.7976931348623157e307

_SPACE = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_FRACTION = re.compile(rb"\.([0-9]*)")
_EXPONENT = re.compile(rb"[eE][+-]?([0-9]*)")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES = dict(zip(b'"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))
_LITERALS: dict[int, tuple[bytes, Any]] = {
    ord("n"): (b"null", None),
    ord("t"): (b"true", True),
    ord("f"): (b"false", False),
}


def to_double(text: str) -> float:
    """Returns a number as RapidJSON reads it: some that are too large are infinite.

    Raises:
      OverflowError: if it refuses the number: by the exponent and the digits before
        it, whatever the value.

    Example:
      >>> to_double("1.8e308")
      inf
    """
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    if len(whole) > 309 or (len(whole) == 309 and float(whole[:308]) >= _LAST):
        raise OverflowError(text)
    power = exponent.lstrip("+0")
    if power[:1] not in ("", "-"):
        # A double has less than 10,000 digits on either side of its point.
        if len(power) > 4 or int(power) > 308 + _counted(whole, fraction[:10_000]):
            raise OverflowError(text)
    return float(text)


def _counted(whole: str, fraction: str) -> int:
    """The digits of a fraction that count: 17 significant ones, zeros before them."""
    value = int(whole[:25])
    significant = len(whole) - 1
    for place, digit in enumerate(fraction):
        if value > 2**53 - 1 and significant >= 17:
            return place
        value = value * 10 + int(digit)
        significant += value > 0
    return len(fraction)


def error(text: str, offset: int) -> RequestError:
    """Returns RapidJSON's complaint as TensorFlow Serving words it."""
    return invalid(f"JSON Parse error: {text} at offset: {offset}")


class Scanner:
    """Reads one document.

    Args:
      data: the document; it ends at its first NUL outside of strings.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 3 if data.startswith(b"\xef\xbb\xbf") else 0

    def document(self) -> Any:
        """Returns the value.

        Raises:
          RequestError: if it is not valid JSON, with the offset in bytes.
        """
        self._space()
        if self._peek() == 0:
            raise error("The document is empty.", self._at)
        value = self._value(0)
        self._space()
        if self._peek() != 0:
            raise error(
                "The document root must not be followed by other values.", self._at
            )
        return value

    def _peek(self) -> int:
        return self._data[self._at] if self._at < len(self._data) else 0

    def _space(self) -> None:
        self._at = self._match(_SPACE).end()

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        found = pattern.match(self._data, self._at)
        assert found is not None  # such patterns match the empty string
        return found

    def _consume(self, expected: bytes) -> bool:
        """Moves past the bytes that are there; True if all are."""
        for byte in expected:
            if self._peek() != byte:
                return False
            self._at += 1
        return True

    def _value(self, depth: int) -> Any:
        first = self._peek()
        if first == ord('"'):
            return self._string()
        if first in b"{[" and first != 0:
            if depth >= MAX_DEPTH:
                raise error("Terminate parsing due to Handler error.", self._at)
            return self._object(depth) if first == ord("{") else self._array(depth)
        if first in _LITERALS:
            expected, value = _LITERALS[first]
            if self._consume(expected):
                return value
            raise error("Invalid value.", self._at)
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        self._at += 1
        result: dict[str, Any] = {}
        self._space()
        if self._consume(b"}"):
            return result
        while True:
            if self._peek() != ord('"'):
                raise error("Missing a name for object member.", self._at)
            name = self._string()
            self._space()
            if not self._consume(b":"):
                raise error("Missing a colon after a name of object member.", self._at)
            self._space()
            # As `FindMember` does: the first of equal names counts.
            result.setdefault(name, self._value(depth + 1))
            self._space()
            if self._consume(b"}"):
                return result
            if not self._consume(b","):
                raise error("Missing a comma or } after an object member.", self._at)
            self._space()

    def _array(self, depth: int) -> list[Any]:
        self._at += 1
        result: list[Any] = []
        self._space()
        if self._consume(b"]"):
            return result
        while True:
            result.append(self._value(depth + 1))
            self._space()
            if self._consume(b"]"):
                return result
            if not self._consume(b","):
                raise error("Missing a comma or ] after an array element.", self._at)
            self._space()

    def _number(self) -> int | float:
        start = self._at
        found = _NUMBER.match(self._data, start)
        if not found:
            return self._not_finite()
        self._at = found.end()
        integral = True
        for pattern, missing in (
            (_FRACTION, "Miss fraction part in number."),
            (_EXPONENT, "Miss exponent in number."),
        ):
            part = pattern.match(self._data, self._at)
            if part:
                integral = False
                self._at = part.end()
                if not part.group(1):
                    raise error(missing, self._at)
        text = self._data[start : self._at]
        if integral and len(text) < 25 and MIN_INT <= int(text) <= MAX_INT:
            return int(text)
        try:
            return to_double(text.decode("ascii"))
        except OverflowError:
            raise error("Number too big to be stored in double.", start) from None

    def _not_finite(self) -> float:
        sign = -1.0 if self._consume(b"-") else 1.0
        if self._peek() == ord("N") and self._consume(b"NaN"):
            return math.nan
        if self._peek() == ord("I") and self._consume(b"Inf"):
            if self._peek() != ord("i") or self._consume(b"inity"):
                return sign * math.inf
        raise error("Invalid value.", self._at)

    def _string(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            plain = self._match(_PLAIN)
            # Encoding is not checked: other bytes reach the model as they are.
            parts.append(plain.group().decode("utf-8", "surrogateescape"))
            self._at = plain.end()
            byte = self._peek()
            if byte == ord('"'):
                self._at += 1
                return "".join(parts)
            if byte == 0:
                raise error("Missing a closing quotation mark in string.", self._at)
            if byte != ord("\\"):
                raise error("Invalid escape character in string.", self._at)
            parts.append(self._escape())

    def _escape(self) -> str:
        start = self._at
        self._at += 1
        byte = self._peek()
        if byte in _ESCAPES:
            self._at += 1
            return _ESCAPES[byte]
        if byte != ord("u"):
            raise error("Invalid escape character in string.", start)
        self._at += 1
        code = self._hex(start)
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)
        if code > 0xDBFF:  # the second half of a pair passes alone
            three = chr(code).encode("utf-8", "surrogatepass")
            return three.decode("utf-8", "surrogateescape")
        if self._consume(b"\\u"):
            low = self._hex(start)
            if 0xDC00 <= low <= 0xDFFF:
                return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
        raise error("The surrogate pair in string is invalid.", start)

    def _hex(self, start: int) -> int:
        found = _HEX.match(self._data, self._at)
        if not found:
            raise error("Incorrect hex digit after \\u escape in string.", start)
        self._at = found.end()
        return int(found.group(), 16)
