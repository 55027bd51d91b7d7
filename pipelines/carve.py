"""Carve a test part from training events, to choose settings on.

    python pipelines/carve.py --events E.parquet --take view=3 --take cart=2 \
        --take buy=1 --output carved.parquet

The log is written without its own test and validation rows; up to that many pairs per
user that were met by one event alone become its test part. The other pipelines then
train and measure on it as on any log.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence

from tfcsmf import cli
from tfcsmf.data.carve import carve_test
from tfcsmf.data.reader import read_table
from tfcsmf.errors import ConfigError
from tfcsmf.files import write_atomic


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--events", required=True, help="event log: a file, a folder or a glob")
    add(
        "--take",
        action="append",
        required=True,
        metavar="EVENT=N",
        help="most pairs per user to hold out of an event; repeat it for others",
    )
    add("--output", required=True, help="Parquet file to write")
    add("--debug", action="store_true", help="show stack traces of errors")
    return parser


def _taken(values: Sequence[str]) -> dict[str, int]:
    taken = {}
    for value in values:
        event, _, count = value.rpartition("=")
        if not event or not count.isdigit() or int(count) < 1:
            raise ConfigError(
                "--take should be an event and a number of at least 1, for example "
                f"view=3. Received: {value!r}."
            )
        taken[event] = int(count)
    return taken


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    arguments = parser().parse_args(argv)
    carved = carve_test(read_table(arguments.events, "events"), _taken(arguments.take))
    buffer = io.BytesIO()
    carved.write_parquet(buffer)
    write_atomic(arguments.output, buffer.getvalue())
    counts = carved.group_by("split", "event").len().sort("split", "event")
    for split, event, count in counts.rows():
        print(f"{split:6} {event:20} {count:>12,}")
    return cli.OK


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
