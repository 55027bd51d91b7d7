"""What all command lines share: errors in one line, logging, small parsers."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfcsmf.errors import TfcsmfError

# TensorFlow reads this when it is imported; its start-up notes are not for users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def run(
    main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None
) -> int:
    """Runs a command line and turns errors into one message and a status.

    Args:
      main: takes the arguments (`None`: those of the process), returns a status.
      argv: arguments, for tests.

    Returns:
      What `main` returned; 2 for an error the user can mend (bad input, a full
      disk), 1 for any other, 130 after Ctrl-C. With `--debug` among the arguments
      the stack trace is printed as well.
    """
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        return main(argv)
    except SystemExit as error:  # argparse has said already what is wrong
        return error.code if isinstance(error.code, int) else USER_ERROR
    except TfcsmfError as error:
        return _report(str(error), USER_ERROR, debug)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, debug)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"The disk is full while writing {error.filename or 'the output'}. "
                "Free some space and run the command again (a training run continues "
                "with --resume); nothing finished is lost."
            )
            return _report(message, USER_ERROR, debug)
        return _report(_unexpected(error), FAILED, debug)
    except Exception as error:  # the last resort of a command line
        return _report(_unexpected(error), FAILED, debug)


def _report(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return status


def _unexpected(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (--debug shows where)"


def configure_logging(quiet: bool) -> None:
    """Sends the package's own notes to stderr; TensorFlow's only if severe."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
    )
    for name in ("tensorflow", "absl", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose a log and a configuration."""
    add = parser.add_argument
    add(
        "--events",
        help="event log: a Parquet or CSV file, folder or glob; "
        "without it the built-in simulator makes one",
    )
    add("--items", help="item table with features; its ids join the catalogue")
    add("--users", help="user table with features")
    add("--objectives", help="values of the event column, in cascade order: a,b,c")
    add("--config", help="YAML file with any part of the configuration tree")
    add("--set", action="append", default=[], metavar="a.b=c", help="one setting")
    add("--quiet", action="store_true", help="no progress bars")
    add("--debug", action="store_true", help="show stack traces of errors")


def log_options(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    """Returns what `add_log_options` read, for `tfcsmf.config.with_options`."""
    return {
        ("data", "events"): arguments.events,
        ("data", "items"): arguments.items,
        ("data", "users"): arguments.users,
        ("cascade", "objectives"): split_names(arguments.objectives),
    }


def split_names(text: str | None) -> list[str] | None:
    """Returns the names of a comma-separated option, without blanks around them.

    Empty ones are left out, so that a comma at the end does no harm.

    Example:
      >>> split_names("view, cart,buy,")
      ['view', 'cart', 'buy']
    """
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def next_steps(output: str | Path, report: Path) -> str:
    """Returns how to look at a finished run, ask it and serve it."""
    # The interpreter that has the package, which need not be `python`.
    python = os.path.relpath(sys.executable)
    if python.startswith(os.pardir):
        python = sys.executable
    return (
        f"\nReport:  {report}\n"
        f"Ask:     {python} pipelines/retrieve.py --model {output} --user-id U\n"
        f"Serve:   {python} pipelines/serve.py --model-base-path "
        f"{Path(output) / 'serving'}\n"
        "         curl http://localhost:8501/v1/models/cascade/metadata"
    )
