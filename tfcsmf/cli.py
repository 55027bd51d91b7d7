"""What all command lines share: errors in one line, logging, small parsers."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcsmf.errors import ConfigError, TfcsmfError

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
        "without it and --dataset the built-in simulator makes one",
    )
    add("--dataset", metavar="NAME", help="a public data set, see docs/datasets.md")
    add("--data-dir", metavar="DIR", help="folder with the files of --dataset")
    add(
        "--cache-dir",
        metavar="DIR",
        help="where --dataset keeps the log it converts; default: in --data-dir",
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


def with_dataset(
    tree: Mapping[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Returns a configuration tree that reads what `--dataset` names.

    Its files replace `data.events`, `data.items` and `data.users`, and its events in
    cascade order are the objectives where the tree names none.

    Args:
      tree: what `--config`, or the run to extend, holds.
      arguments: what `add_log_options` read; with `extend` where there is a run to
        extend, whose log is replaced.

    Raises:
      ConfigError: for a log beside the data set, or one option without the other.
      DataError: for an unknown data set, missing or malformed files.
    """
    if arguments.dataset is None:
        for option in ("data_dir", "cache_dir"):
            if getattr(arguments, option) is not None:
                raise ConfigError(
                    f"--{option.replace('_', '-')} belongs to a data set. Received: no "
                    "--dataset. Name one of docs/datasets.md, or read a log with "
                    "--events."
                )
        return dict(tree)
    # Imported late: most runs read no data set, and `--help` answers at once.
    from tfcsmf.config import with_options
    from tfcsmf.data.datasets import event_log, find

    dataset = find(arguments.dataset)
    # The run to extend has a log, of which nothing is kept.
    kept = {} if getattr(arguments, "extend", None) else _section(tree, "data")
    _require_one_log(arguments, kept)
    if arguments.data_dir is None:
        raise ConfigError(
            f"--dataset {dataset.name} needs --data-dir, the folder with its files. "
            f"Received: none. {dataset.instructions}"
        )
    files = event_log(dataset.name, arguments.data_dir, arguments.cache_dir)
    merged = with_options(tree, {("data", "events"): str(files.events)})
    for name, path in (("items", files.items), ("users", files.users)):
        own = kept.get(name)
        merged["data"][name] = own or (None if path is None else str(path))
    if "objectives" not in _section(tree, "cascade"):
        key = ("cascade", "objectives")
        merged = with_options(merged, {key: list(files.objectives)})
    return merged


def with_folder(tree: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Returns a configuration tree that trains from a prepared folder.

    Args:
      tree: what is said of the data in it goes first.
      path: what `--prepared` names; `None` changes nothing.

    Raises:
      DataError: if it is no prepared folder.
    """
    if path is None:
        return dict(tree)
    from tfcsmf.data.sharded.folder import PreparedFolder
    from tfcsmf.data.sharded.settings import with_prepared

    return with_prepared(tree, PreparedFolder.open(path).tree["config"], path)


def _section(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, Mapping) else {}


def _require_one_log(arguments: argparse.Namespace, data: Mapping[str, Any]) -> None:
    assigned = any(text.strip().startswith("data.events=") for text in arguments.set)
    if arguments.events is None and data.get("events") is None and not assigned:
        return
    other = "data.events" if arguments.events is None else "--events"
    raise ConfigError(
        f"A run should read one log. Received: --dataset and {other}. Leave one of "
        "them out."
    )


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
