"""Error classes: the rule, what was received, and what to do next."""

import difflib
from collections.abc import Iterable


class TfcsmfError(Exception):
    """Base class of every error a user can cause and mend.

    Command lines print its message alone and exit with status 2; `--debug`
    shows the stack trace as well.
    """


class ConfigError(TfcsmfError, ValueError):
    """A configuration key or value is not acceptable."""


class DataError(TfcsmfError, ValueError):
    """An input table breaks a rule of the event-log schema."""


class CheckpointError(TfcsmfError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class WorkerError(TfcsmfError, RuntimeError):
    """A worker of a training on several machines failed, or holds other data."""


class ExportError(TfcsmfError, RuntimeError):
    """A model could not be exported or an exported model is not usable."""


class CapacityError(TfcsmfError, ValueError):
    """A stage has no free parameters left to train."""


class ServingError(TfcsmfError, RuntimeError):
    """A server refused a request, failed, or cannot be reached.

    Attributes:
      code: canonical name of the error, such as "NOT_FOUND".
    """

    def __init__(self, message: str, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the choice nearest to `name`, or `""`.

    Example:
      >>> nearest("usr_id", ["user_id", "item_id"])
      " Did you mean 'user_id'?"
    """
    lowered = {str(choice).lower(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return f" Did you mean {lowered[matches[0]]!r}?" if matches else ""
