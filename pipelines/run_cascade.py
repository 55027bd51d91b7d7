r"""Train, evaluate and export a cascade of objectives (CSMF).

Without arguments it runs on the built-in simulator. On a log of your own:

    python pipelines/run_cascade.py --events E.parquet --objectives view,cart,buy \
        --output saved_models/shop

or on a public data set by name (docs/datasets.md):

    python pipelines/run_cascade.py --dataset retailrocket --data-dir downloads

or on a log that does not fit into memory, prepared before (pipelines/prepare.py):

    python pipelines/run_cascade.py --prepared prepared --output saved_models/shop
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
    add("--prepared", metavar="DIR", help="train from a log prepared in this folder")
    add("--output", default="saved_models/cascade", help="folder of the run")
    add("--seed", type=int, help="seed of everything random")
    add("--resume", action="store_true", help="continue a killed run in --output")
    add("--query-encoder", help="pooled (default), heterrec, merged, sasrec, gru4rec")
    add("--index", help="of the export: auto (default), exact, ivf, scann")
    add(
        "--distribution",
        choices=("none", "multi_worker", "parameter_server"),
        default="none",
        help="train with the processes of TF_CONFIG, see docs/scale.md",
    )
    add("--extend", metavar="DIR", help="append objectives to this finished run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(arguments.quiet)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.cascade.parameter_servers import open_servers
    from tfcsmf.cascade.run import assist_cascade, base_tree, run_cascade
    from tfcsmf.cascade.workers import open_workers
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.errors import ConfigError
    from tfcsmf.evaluation.report import format_table

    # First of all: TensorFlow's runtime has to start as a part of the cluster.
    workers = open_workers(arguments.distribution)
    servers = open_servers(arguments.distribution)
    if servers is not None and not servers.is_chief:
        servers.serve()
        return 0
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
    tree = cli.with_dataset(tree, arguments)
    tree = cli.with_folder(tree, arguments.prepared)
    options = cli.log_options(arguments) | {
        ("seed",): arguments.seed,
        ("towers", "query_encoder"): arguments.query_encoder,
        ("retrieval", "index"): arguments.index,
    }
    config = Config.from_dict(with_options(tree, options), arguments.set)
    if workers is not None and not workers.is_chief:
        assist_cascade(config, workers, arguments.extend)
        return 0
    result = run_cascade(
        config,
        arguments.output,
        resume=arguments.resume,
        extend=arguments.extend,
        show_progress=not arguments.quiet,
        workers=workers,
        servers=servers,
    )
    print(format_table(result.metrics))
    print(cli.next_steps(arguments.output, result.report))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
