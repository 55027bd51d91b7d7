r"""Train, evaluate and export a cascade of objectives (CSMF).

Without arguments it runs on the built-in simulator. On a log of your own:

    python pipelines/run_cascade.py --events E.parquet --objectives view,cart,buy \
        --output saved_models/shop
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
    add(
        "--events",
        help="event log: a Parquet or CSV file, folder or glob; "
        "without it the built-in simulator makes one",
    )
    add("--items", help="item table with features; its ids join the catalogue")
    add("--users", help="user table with features")
    add("--objectives", help="values of the event column, in cascade order: a,b,c")
    add("--output", default="saved_models/cascade", help="folder of the run")
    add("--config", help="YAML file with any part of the configuration tree")
    add("--set", action="append", default=[], metavar="a.b=c", help="one setting")
    add("--seed", type=int, help="seed of everything random")
    add("--resume", action="store_true", help="continue a killed run in --output")
    add("--extend", metavar="DIR", help="append objectives to this finished run")
    add("--quiet", action="store_true", help="no progress bars")
    add("--debug", action="store_true", help="show stack traces of errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.cascade.run import base_tree, run_cascade
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.errors import ConfigError
    from tfcsmf.evaluation.report import format_table

    objectives = cli.split_names(arguments.objectives)
    if arguments.extend and arguments.config:
        raise ConfigError(
            "--extend takes the configuration of the run it names. Received: --config "
            "as well. Change single values with --set."
        )
    if arguments.extend:
        tree = base_tree(arguments.extend, objectives)
    else:
        tree = read_yaml(arguments.config) if arguments.config else {}
    options = {
        ("data", "events"): arguments.events,
        ("data", "items"): arguments.items,
        ("data", "users"): arguments.users,
        ("cascade", "objectives"): objectives,
        ("seed",): arguments.seed,
    }
    config = Config.from_dict(with_options(tree, options), arguments.set)
    result = run_cascade(
        config,
        arguments.output,
        resume=arguments.resume,
        extend=arguments.extend,
        show_progress=not arguments.quiet,
    )
    print(format_table(result.metrics))
    print(cli.next_steps(arguments.output, result.report))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
