r"""Train, evaluate and export a sequence encoder (HeterRec, SASRec, GRU4Rec).

Without arguments it runs on the built-in simulator. On a log of your own:

    python pipelines/run_sequence.py --events E.parquet --items I.parquet \
        --objectives review --encoder heterrec --output saved_models/sequence
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
    add("--output", default="saved_models/sequence", help="folder of the run")
    add("--seed", type=int, help="seed of everything random")
    add("--resume", action="store_true", help="continue a killed run in --output")
    add("--encoder", help="heterrec (default), merged, sasrec or gru4rec")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.evaluation.report import format_table
    from tfcsmf.heterrec.run import run_sequence

    tree = read_yaml(arguments.config) if arguments.config else {}
    tree = cli.with_dataset(tree, arguments)
    options = cli.log_options(arguments) | {
        ("seed",): arguments.seed,
        ("sequence", "encoder"): arguments.encoder,
    }
    config = Config.from_dict(with_options(tree, options), arguments.set)
    result = run_sequence(
        config, arguments.output, arguments.resume, not arguments.quiet
    )
    print(format_table(result.metrics))
    print(cli.next_steps(arguments.output, result.report))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
