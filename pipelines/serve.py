r"""Serve SavedModels over TensorFlow Serving's REST and gRPC APIs.

    python pipelines/serve.py --model-base-path saved_models/demo/serving
    curl http://localhost:8501/v1/models/cascade/metadata

The folder holds one folder per version, named by a number. New versions are taken
up and removed ones let go while requests are answered. docs/serving.md has more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tfcsmf import cli


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-base-path", metavar="DIR", help="folder of versions")
    add("--model-name", default="cascade", help="name in requests (default cascade)")
    add(
        "--model-config-file",
        metavar="FILE",
        help="TensorFlow Serving's own file, for several models, version policies and "
        "labels; instead of --model-base-path",
    )
    add(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VERSION",
        help="version label, repeat the option for others",
    )
    add("--host", default="127.0.0.1", help="address (default 127.0.0.1; all: 0.0.0.0)")
    add("--rest-port", type=int, default=8501, help="HTTP (default 8501; 0: any)")
    add("--grpc-port", type=int, default=8500, help="gRPC (default 8500; -1: none)")
    add("--poll-seconds", type=float, default=1.0, help="new versions (default 1)")
    add("--workers", type=int, help="threads running models (default: by cores)")
    add("--timeout", type=float, default=30.0, help="seconds per request (default 30)")
    add("--max-body-mb", type=float, default=64.0, help="request size (default 64)")
    add(
        "--max-rows",
        type=int,
        default=10_000,
        help="most rows of a request to an export of tfcsmf (default 10000)",
    )
    add(
        "--batch-delay-ms",
        type=float,
        default=0.0,
        help="join requests of several connections, waiting at most this long for "
        "others (default 0: do not)",
    )
    add("--batch-rows", type=int, default=64, help="most rows joined (default 64)")
    add("--quiet", action="store_true", help="warnings only, and no access log")
    add("--debug", action="store_true", help="show stack traces of errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.serving.command import serve

    serve(arguments)
    return cli.OK


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
