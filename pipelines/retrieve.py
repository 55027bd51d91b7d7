r"""Ask an exported model: the best items of one user, for any weights.

    python pipelines/retrieve.py --model saved_models/shop --user-id 42 \
        --history view=i1,i2 --history cart=i3 --weights view=1,buy=3 --k 10

The model keeps no histories: give what the user did with --history, or the answer
is that for a user of whom only id and features are known. Printed are the fused
score, which the order follows, and the score for each objective; the sum of the
latter, weighted, is the former. docs/serving.md has more.
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
    add("--model", required=True, help="folder of a run, of versions, or one version")
    add("--version", type=int, help="version to ask; default: the newest")
    add("--user-id", default="", help="user; default: none. Unknown ones are legal")
    add(
        "--history",
        action="append",
        default=[],
        metavar="EVENT=i1,i2",
        help="item ids, oldest first; repeat the option for other events",
    )
    add(
        "--weights",
        metavar="a=1,b=3",
        help="weight per objective, 0 leaves it out and less than 0 demotes; those not "
        "named keep the default of the export, so not 0",
    )
    add(
        "--k",
        type=int,
        help="number of items (default 10); at most retrieval.max_k of the export",
    )
    add("--exclude", metavar="i1,i2", help="item ids that must not be returned")
    add(
        "--feature",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="user feature, repeat the option for others; commas separate the values "
        "of one. Those left out are missing",
    )
    add(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=a,b",
        help="values of a categorical item attribute, items need one of them; repeat "
        "the option for other attributes",
    )
    add("--debug", action="store_true", help="show stack traces of errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(quiet=True)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.retrieval import requests
    from tfcsmf.retrieval.exported import ExportedModel

    histories = requests.parse_lists(arguments.history, "--history")
    weights = requests.parse_weights(arguments.weights)
    model = ExportedModel(arguments.model, arguments.version)
    items = model.retrieve(
        arguments.user_id,
        histories,
        weights,
        min(10, model.k) if arguments.k is None else arguments.k,
        cli.split_names(arguments.exclude) or (),
        requests.parse_features(arguments.feature, model.description),
        requests.parse_lists(arguments.filter, "--filter"),
    )
    print(requests.format_items(items, model.objectives))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
