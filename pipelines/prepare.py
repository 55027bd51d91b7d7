"""Prepare a log of any size into a folder that training reads from disk.

On this machine, one shard in memory at a time:

    python pipelines/prepare.py --events 'log/*.parquet' --objectives view,cart,buy \
        --output prepared

or by an Apache Beam runner, to the same files; options that this command does not know
are the runner's:

    python pipelines/prepare.py --events ... --objectives ... --output ... \
        --runner FlinkRunner --flink_master host:8081

Needs Beam: `pip install 'tfcsmf[beam]'`. All workers have to reach the log and the
folder under the same names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tfcsmf import cli

LOCAL = "local"


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_log_options(parser)
    add = parser.add_argument
    add("--output", required=True, help="folder to write; new or empty")
    add("--shards", type=int, help="files; default one per 250,000 rows")
    add("--seed", type=int, help="seed of everything random")
    add(
        "--runner",
        default=LOCAL,
        help="local (default), or one of Beam's: DirectRunner, FlinkRunner, "
        "SparkRunner, DataflowRunner",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    arguments, others = parser().parse_known_args(argv)
    if others and arguments.runner == LOCAL:
        parser().parse_args(argv)  # says which are unknown
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.data.sharded.folder import PreparedFolder
    from tfcsmf.data.sharded.local import prepare_sharded
    from tfcsmf.errors import ConfigError

    if arguments.shards is not None and arguments.shards < 1:
        raise ConfigError(
            f"--shards should be at least 1. Received: {arguments.shards}."
        )
    tree = read_yaml(arguments.config) if arguments.config else {}
    tree = cli.with_dataset(tree, arguments)
    options = cli.log_options(arguments) | {("seed",): arguments.seed}
    config = Config.from_dict(with_options(tree, options), arguments.set)
    if arguments.runner == LOCAL:
        prepare_sharded(config, arguments.output, arguments.shards)
    else:
        try:
            from tfcsmf.data.sharded.beam_pipeline import prepare_with_beam
        except ImportError as error:
            raise ConfigError(
                f"--runner {arguments.runner} needs Apache Beam, which is not "
                f"installed ({error}). Run: pip install 'tfcsmf[beam]'."
            ) from error
        runner = [f"--runner={arguments.runner}", *others]
        prepare_with_beam(config, arguments.output, arguments.shards, runner)
    folder = PreparedFolder.open(arguments.output)
    for name, counts in folder.tree["summary"]["events"].items():
        print(f"{name:20} {counts['train']:>14,} training events")
    print(f"{len(folder.shards)} shards in {arguments.output}")
    return cli.OK


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
