r"""Compare CSMF with what one would do instead, and with variants of itself.

    python pipelines/compare.py --events E.parquet --objectives view,cart,buy \
        --systems csmf separate union popularity --seeds 0 1 2 --output saved_models/all

Run it again, also after a kill, with the same options and others in --systems,
--ablations, --seeds or --on: what is finished is not repeated. docs/comparison.md says
what the systems are.
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
    cli.add_log_options(parser)
    add = parser.add_argument
    add("--output", default="saved_models/comparison", help="folder of the comparison")
    add("--systems", nargs="+", metavar="NAME", help="default: all systems")
    add(
        "--ablations",
        nargs="*",
        metavar="NAME",
        help="variants of CSMF, all of them if none is named; without --systems they "
        "are compared with csmf alone",
    )
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    add(
        "--on",
        choices=("test", "validation"),
        default="test",
        help="queries to measure; choose settings on validation (default: test)",
    )
    add("--list", action="store_true", help="print all names and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(quiet=False)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.baselines import registry
    from tfcsmf.baselines.comparison import Comparison
    from tfcsmf.baselines.comparison_report import format_comparison
    from tfcsmf.config import Config, read_yaml, with_options

    if arguments.list:
        print(registry.describe())
        return 0
    names = registry.chosen(arguments.systems, arguments.ablations)
    tree = read_yaml(arguments.config) if arguments.config else {}
    tree = cli.with_dataset(tree, arguments)
    options = cli.log_options(arguments)
    config = Config.from_dict(with_options(tree, options), arguments.set)
    comparison = Comparison(
        config, arguments.output, arguments.on, show_progress=not arguments.quiet
    )
    content = comparison.run(names, list(dict.fromkeys(arguments.seeds)))
    print(format_comparison(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
