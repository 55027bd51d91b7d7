"""The error codes of TensorFlow Serving, over gRPC and over HTTP."""

from __future__ import annotations

import logging
from enum import IntEnum

_LOGGER = logging.getLogger("tfcsmf.serving")


class Code(IntEnum):
    """Canonical codes, numbered as in gRPC and TensorFlow."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# What TensorFlow Serving answers over HTTP.
HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class RequestError(Exception):
    """A request that is answered with an error.

    It is no `TfcsmfError`: its text is part of the protocol and follows
    TensorFlow Serving's words, not ours.

    Args:
      code: what kind of error.
      message: the text of the answer.
      http_status: where it is another than that of the code.
    """

    def __init__(
        self, code: Code, message: str, http_status: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or HTTP_STATUS[code]

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> RequestError:
    """Returns the error of a malformed request."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> RequestError:
    """Returns the error of a model, version or signature that is not there."""
    return RequestError(Code.NOT_FOUND, message)


def from_exception(error: BaseException) -> RequestError:
    """Returns what any exception is answered with; TensorFlow's keep their code."""
    if isinstance(error, RequestError):
        return error
    code = getattr(error, "error_code", None)
    message = getattr(error, "message", None)
    if isinstance(code, int) and isinstance(message, str) and code in set(Code):
        return RequestError(Code(code), message)
    if isinstance(error, OSError):
        return not_found(str(error))
    _LOGGER.error("unexpected error", exc_info=error)
    return RequestError(Code.INTERNAL, f"{type(error).__name__}: {error}")
