"""RapidJSON's own JSON, rewritten so that the standard library reads it.

`json_scanner.Scanner` reads both, but byte by byte: a second for a megabyte.
"""

from __future__ import annotations

import re

from tfcsmf.serving.json_scanner import error

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Every escape, so that the second of two backslashes begins none: pairs, halves
# (first, second), others.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89abAB][0-9a-fA-F]{2})|(\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_NOT_FINITE = re.compile(rb"Inf(?!inity)|-NaN")
# Such a number, or a string, in which it is none.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|Inf(?!inity)|-NaN', re.DOTALL)
_SPELLINGS = {b"Inf": b"Infinity", b"-NaN": b"NaN"}


def standard(data: bytes) -> bytes:
    r"""Returns a document of the same meaning in standard JSON.

    The document ends at its first NUL; a byte order mark, `Inf`, `-NaN` and the
    second half of a surrogate pair alone are legal.

    Raises:
      RequestError: if the first half of a surrogate pair is alone.

    Example:
      >>> standard(b'\xef\xbb\xbf{"Inf": [-Inf, 1]}' + bytes(3))
      b'{"Inf": [-Infinity, 1]}'
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    end = data.find(0)
    if end >= 0:
        data = data[:end]
    if _SURROGATE.search(data):
        data = _ESCAPE.sub(_without_half, data)
    if _NOT_FINITE.search(data):
        data = _TOKEN.sub(_spelt, data)
    return data


def _without_half(found: re.Match[bytes]) -> bytes:
    if found.group(1):
        raise error("The surrogate pair in string is invalid.", found.start())
    if found.group(2):
        return chr(int(found.group(2)[2:], 16)).encode("utf-8", "surrogatepass")
    return found.group()


def _spelt(found: re.Match[bytes]) -> bytes:
    return _SPELLINGS.get(found.group(), found.group())
