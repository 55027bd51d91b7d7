"""Reading and preparing a log: rows per second against plain pandas.

    python benchmarks/preparation.py [--rows 1000000 5000000] [--quick]

The log is a Parquet file: copies of a simulated log, each with users of its own. Both
read it, drop repeated rows, code ids, keep the last event of every user and objective
for testing, and list the histories of users; they must agree on all counts. `tfcsmf`
also checks the log, finds the history of *every* training example and the
masks of every test query; `tfcsmf, defaults` holds out validation pairs as well.
Without pandas (it is no dependency) that line is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip

import numpy as np
import polars as pl

from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.prepare import prepare
from tfcsmf.data.simulator import simulate

SIZES = {"rows": [1_000_000], "users": 2000, "items": 5000, "repeats": 3}
QUICK = {"rows": [20_000], "users": 60, "items": 100}
OURS, DEFAULTS, PEER = "tfcsmf", "tfcsmf, defaults", "pandas"
OBJECTIVES = Config().cascade.objectives
LEAST = 3  # events of a user and objective of which one is held out

Counts = dict[str, Any]


def write_log(path: Path, rows: int, users: int, items: int) -> None:
    """Writes at least `rows` rows: copies of one simulation, shuffled."""
    made = simulate(SimulatorConfig(users=users, items=items), OBJECTIVES, seed=0)
    copies = -(-rows // made.events.height)
    number = pl.int_range(copies, eager=True).cast(pl.String).alias("copy")
    log = made.events.join(number.to_frame(), how="cross")
    log = log.with_columns(user_id=pl.col("user_id") + "_" + pl.col("copy"))
    log.drop("copy").head(rows).sample(
        fraction=1.0, shuffle=True, seed=0
    ).write_parquet(path)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences "no validation pairs", which is what is asked for here."""
    logger = logging.getLogger("tfcsmf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def ours(path: Path, validation_users: int) -> Counts:
    settings = {
        "data": {
            "events": str(path),
            "split": "leave_last_out",
            "validation_users": validation_users,
        }
    }
    with without_warnings():
        log = prepare(Config.from_dict(settings))
    return {
        "users": log.users.size,
        "items": log.items.size,
        "train": [len(log.train[name].pairs) for name in OBJECTIVES],
        "test": [len(log.test[name].targets.items) for name in OBJECTIVES],
        "histories": [
            len(log.train_histories.lists[name].items) for name in OBJECTIVES
        ],
    }


def peer(path: Path) -> Counts:
    """What one would write by hand."""
    import pandas as pd

    log = pd.read_parquet(path).drop_duplicates()
    users, user_ids = pd.factorize(log["user_id"])
    items, item_ids = pd.factorize(log["item_id"])
    log = log.assign(user=users, item=items)
    log = log.sort_values(["user", "event", "timestamp"], kind="stable")
    groups = log.groupby(["user", "event"], sort=False)
    size = groups["item"].transform("size")
    last = groups.cumcount() == size - 1
    held_out = last & (size >= LEAST)
    train, test = log[~held_out], log[held_out]
    histories = train.groupby(["user", "event"], sort=False)["item"].agg(np.array)
    lengths = histories.map(len).groupby(level="event").sum()
    known = train.groupby("event").size()
    targets = test.groupby("event").size()
    return {
        "users": len(user_ids),
        "items": len(item_ids),
        "train": [int(known[name]) for name in OBJECTIVES],
        "test": [int(targets.get(name, 0)) for name in OBJECTIVES],
        "histories": [int(lengths[name]) for name in OBJECTIVES],
    }


def systems_for(path: Path) -> dict[str, Callable[[], Counts]]:
    systems = {
        OURS: lambda: ours(path, 0),
        DEFAULTS: lambda: ours(path, Config().data.validation_users),
    }
    if importlib.util.find_spec("pandas"):
        systems[PEER] = lambda: peer(path)
    return systems


def compare(
    report: harness.Report, options: argparse.Namespace, path: Path, rows: int
) -> None:
    systems = systems_for(path)
    counts = {}
    for name in set(systems) & {OURS, PEER}:
        counts[name] = systems[name]()
    if PEER in counts and counts[OURS] != counts[PEER]:
        raise AssertionError(f"Both should count the same: {counts}")
    seconds = harness.interleave(systems, options.repeats, warm_up=False)
    first = statistics.median(seconds[OURS])
    for name, values in seconds.items():
        # The child reads this file instead of writing its own.
        child = argparse.Namespace(**vars(options))
        child.argv = [*options.argv, "--log", str(path)]
        report.add(
            name,
            {"rows": rows, "file_mib": round(path.stat().st_size / 2**20)},
            "rows/s",
            [rows / value for value in values],
            seconds=statistics.median(values),
            times_tfcsmf=statistics.median(values) / first,
            peak_memory_gib=harness.memory_of(__file__, child, name),
        )
    report.note(f"counts: {counts[OURS]}")


def main(argv: Sequence[str] | None = None) -> None:
    sizes = SIZES | {"log": ""}
    options = harness.parse("preparation", __doc__, argv, sizes, QUICK)
    if options.child:
        return harness.run_child(options, systems_for(Path(options.log))[options.child])
    report = harness.Report(options)
    report.head()
    if not importlib.util.find_spec("pandas"):
        report.note("pandas is not installed; its line is left out")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.parquet"
            write_log(path, rows, options.users, options.items)
            compare(report, options, path, rows)
    report.write()


if __name__ == "__main__":
    main()
