r"""Give an exported model a new catalogue, without training.

    python pipelines/refresh_index.py --model saved_models/shop --items items.parquet

All items of the table are embedded by the newest version of the model; those it no
longer names are dropped, new ones get their vectors from features. An index is built,
calibrated and published as the next version; older versions stay as they are.
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
    add("--model", required=True, help="folder of a run or of versions")
    add(
        "--items",
        required=True,
        help="all items to list, with the item features of the model: a Parquet or CSV "
        "file, folder or glob",
    )
    add("--item-id", default="item_id", help="id column (default item_id)")
    add(
        "--index",
        choices=("auto", "exact", "ivf", "scann"),
        default="auto",
        help="kind of index (default auto: by the number of items)",
    )
    add("--k", type=int, help="results per request; default: that of the export")
    add(
        "--target-recall",
        type=float,
        help="recall approximate search must reach; default: that of the export",
    )
    add("--vectors", metavar="FILE", help="also write ids and vectors as Parquet")
    add("--seed", type=int, default=0, help="seed of the index (default 0)")
    add("--debug", action="store_true", help="show stack traces of errors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(quiet=False)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.config import Config
    from tfcsmf.retrieval.refresh import refresh_index

    options = {
        "index": arguments.index,
        "k": arguments.k,
        "target_recall": arguments.target_recall,
    }
    given = {name: value for name, value in options.items() if value is not None}
    Config.from_dict({"retrieval": given})  # explains a value that does not fit
    done = refresh_index(
        arguments.model,
        arguments.items,
        given,
        arguments.item_id,
        arguments.vectors,
        arguments.seed,
    )
    recall = f"{done.index['recall']:.4f}" if "recall" in done.index else "unknown"
    print(f"{done.path} (index {done.index['kind']}, recall {recall})")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
