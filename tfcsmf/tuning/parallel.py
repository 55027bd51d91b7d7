"""keras-tuner's own parallel search: a chief, which chooses, and workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import grpc

from tfcsmf.errors import ConfigError, TfcsmfError

VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> Literal["alone", "chief", "worker"]:
    """Returns what keras-tuner's variables make of this process.

    Raises:
      ConfigError: if some are set and others are not.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if not given or given == [VARIABLES[0]]:
        return "alone"
    if len(given) < len(VARIABLES):
        raise ConfigError(
            f"A parallel sweep needs {', '.join(VARIABLES)}. Received: only "
            f"{', '.join(given)}. Set all of them, or none."
        )
    return "chief" if "chief" in os.environ[VARIABLES[0]] else "worker"


@contextmanager
def explained() -> Iterator[None]:
    """Turns what may go wrong between the processes into words.

    Raises:
      ConfigError: where the chief's address cannot be used.
      TfcsmfError: where a worker lost its chief.
    """
    try:
        yield
    except RuntimeError as error:
        if role() != "chief" or "bind" not in str(error):
            raise
        raise ConfigError(
            f"{VARIABLES[1]} and {VARIABLES[2]} should be a free address of the chief. "
            f"Received: {_address()}. Choose another port."
        ) from error
    except grpc.RpcError as error:
        raise TfcsmfError(
            f"The chief at {_address()} does not answer any more. Start it again with "
            "--resume, then this worker; finished trials are kept."
        ) from error


def _address() -> str:
    return f"{os.environ[VARIABLES[1]]}:{os.environ[VARIABLES[2]]}"
