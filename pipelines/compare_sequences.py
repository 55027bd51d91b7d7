r"""Compare sequence encoders, each with settings of its own, over several seeds.

    python pipelines/compare_sequences.py --events E.parquet --items I.parquet \
        --objectives review --seeds 0 1 2 --output saved_models/sequences \
        --variant sasrec sequence.encoder=sasrec sequence.dropout=0.5 \
        --variant heterrec sequence.encoder=heterrec

The others are compared with the first variant, user by user. Run it again, also after a
kill, with the same options: what is finished is not repeated.
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
    add("--output", default="saved_models/sequences", help="folder of the comparison")
    add(
        "--variant",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "KEY=VALUE"),
        help="a name and its settings, beside those of --set; repeat it",
    )
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="default: 0")
    add(
        "--on",
        choices=("test", "validation"),
        default="test",
        help="queries to measure; choose settings on validation (default: test)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.baselines.comparison_report import format_comparison
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.heterrec.comparison import compare_sequences

    tree = read_yaml(arguments.config) if arguments.config else {}
    tree = cli.with_dataset(tree, arguments)
    config = Config.from_dict(
        with_options(tree, cli.log_options(arguments)), arguments.set
    )
    content = compare_sequences(
        config,
        {name: settings for name, *settings in arguments.variant},
        list(dict.fromkeys(arguments.seeds)),
        arguments.output,
        arguments.on,
        not arguments.quiet,
    )
    print(format_comparison(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
