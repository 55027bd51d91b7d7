r"""Search settings of the cascade with keras-tuner, on validation data alone.

    python pipelines/sweep.py --events E.parquet --objectives view,cart,buy \
        --space space.yaml --tuner bayesian --trials 40 --output saved_models/sweep
    python pipelines/run_cascade.py --config saved_models/sweep/best.yaml

Without --events it searches on the built-in simulator, without --space over a few
settings that matter most. docs/sweeps.md has the rest, parallel workers too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    add("--output", default="saved_models/sweep", help="folder of the sweep")
    add(
        "--space",
        metavar="FILE",
        help="YAML of settings and ranges, such as 'cascade.stage.tau: {float: "
        "[0.01, 0.5], log: true}'; also {int: [a, b]}, {choice: [...]}",
    )
    add("--tuner", choices=("random", "bayesian", "hyperband"), default="random")
    add("--trials", type=int, default=20, metavar="N", help="at most (default 20)")
    add(
        "--scalarise",
        choices=("weights", "hypervolume"),
        default="weights",
        help="one score from all objectives (default weights)",
    )
    add("--weights", metavar="a=1,b=3", help="of the objectives' scores (default 1)")
    add(
        "--prune-after",
        type=int,
        default=5,
        metavar="N",
        help="stop a trial after a stage once N others got there and their median is "
        "better (default 5; 0 never)",
    )
    add(
        "--cached-stages",
        type=int,
        default=16,
        metavar="N",
        help="finished stages kept for trials that begin alike (default 16; 0: none)",
    )
    add("--seed", type=int, help="seed of everything random")
    add("--resume", action="store_true", help="continue the sweep in --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    cli.configure_logging(quiet=False)
    # Imported late: `--help` and usage errors answer at once.
    from tfcsmf.config import Config, read_yaml, with_options
    from tfcsmf.retrieval.requests import parse_weights
    from tfcsmf.tuning import DEFAULT_SPACE, Space, SweepSettings, run_sweep
    from tfcsmf.tuning.report import format_sweep

    tree = read_yaml(arguments.config) if arguments.config else {}
    tree = cli.with_folder(cli.with_dataset(tree, arguments), arguments.prepared)
    options = cli.log_options(arguments) | {("seed",): arguments.seed}
    config = Config.from_dict(with_options(tree, options), arguments.set)
    declared = read_yaml(arguments.space) if arguments.space else DEFAULT_SPACE
    space = Space.from_dict(declared, config)
    settings = SweepSettings(
        arguments.tuner,
        arguments.trials,
        arguments.scalarise,
        parse_weights(arguments.weights),
        arguments.prune_after,
        arguments.cached_stages,
    )
    content = run_sweep(
        config,
        arguments.output,
        space,
        settings,
        resume=arguments.resume,
        show_progress=not arguments.quiet,
    )
    if content is not None:
        output = Path(arguments.output)
        print(format_sweep(content))
        print(f"Report:  {output / 'report' / 'index.html'}")
        print(f"Train:   python pipelines/run_cascade.py --config {output}/best.yaml")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
