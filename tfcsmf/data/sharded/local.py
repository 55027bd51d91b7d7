"""The preparation on one machine: one shard in memory at a time."""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from tfcsmf.config import Config
from tfcsmf.data.sharded.bucket import Bucket, make_bucket
from tfcsmf.data.sharded.pieces import Source, find_source, read_piece, shards_of
from tfcsmf.data.sharded.plan import Plan
from tfcsmf.data.sharded.rounds import Facts, Round, rounds_of
from tfcsmf.data.sharded.store import Write, check_target

_LOG = logging.getLogger(__name__)
ROWS_PER_SHARD = 250_000
_RUN = 2_000_000  # rows; all runs are open at the same time
_TOGETHER = 16  # answers that are merged at once


def first_plan(config: Config) -> Plan:
    """Returns the plan before the first round."""
    objectives = config.cascade.objectives
    histories = config.data.history_events
    histories = objectives if histories is None else histories
    return Plan(
        objectives=objectives,
        histories=tuple(dict.fromkeys(histories)),
        names=(),
        method=config.data.split,
        test_share=config.data.test_share,
        seed=config.seed,
        rows_per_user=config.data.rows_per_user,
    )


def all_rounds(config: Config, source: Source, folder: str) -> list[Round]:
    """Returns the rounds of a preparation; the last one writes."""
    return [*rounds_of(config, source), Write(config, source, folder)]


def number_of_shards(source: Source, wanted: int | None) -> int:
    """Returns how many shards a log is dealt out to."""
    return wanted or max(1, -(-source.rows // ROWS_PER_SHARD))


def prepare_sharded(
    config: Config, folder: str | os.PathLike[str], shards: int | None = None
) -> None:
    """Prepares a log into a folder, whatever its size.

    In memory are a piece of the log, or one shard, and the ids and features of all
    users and items. The log is written once to a temporary folder beside the result,
    dealt out to shards by user.

    Args:
      config: as for `tfcsmf.data.prepare.prepare`, which it agrees with.
      folder: to write into; new or empty. See `tfcsmf.data.sharded.store`.
      shards: into how many files; default one per 250,000 rows.

    Raises:
      DataError: if the log breaks a rule, or the folder holds something.
    """
    source = find_source(config)
    folder = os.fspath(folder)
    check_target(folder)
    number = number_of_shards(source, shards)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        runs = _deal(source, config, number, Path(work))
        buckets = _collect(runs, number, Path(work))
        plan = first_plan(config)
        for step in all_rounds(config, source, folder):
            _LOG.info("Preparing: %s, %d shards.", type(step).__name__, len(buckets))
            plan = step.decide(plan, _ask(step, plan, buckets))


def _deal(source: Source, config: Config, shards: int, work: Path) -> list[Path]:
    """Writes the log as runs whose rows are sorted by shard."""
    runs: list[Path] = []
    waiting: list[pl.DataFrame] = []

    def write() -> None:
        if waiting:
            run = work / f"run-{len(runs)}.arrow"
            frame = pl.concat(waiting).sort("shard", maintain_order=True)
            # Plain strings: slices of them are read without the rest.
            frame.write_ipc(run, compat_level=pl.CompatLevel.oldest())
            runs.append(run)
            waiting.clear()

    for piece in source.pieces:
        for frame in read_piece(piece, source, config):
            shard = shards_of(frame["user_id"], shards).alias("shard")
            waiting.append(frame.with_columns(shard))
            if sum(frame.height for frame in waiting) >= _RUN:
                write()
    write()
    return runs


def _collect(runs: list[Path], shards: int, work: Path) -> list[Path]:
    """Puts the rows of every shard together and codes them."""
    tables = [pa.ipc.open_file(pa.memory_map(str(run))).read_all() for run in runs]
    wanted = np.arange(shards + 1)
    ends = [np.searchsorted(table["shard"].to_numpy(), wanted) for table in tables]
    buckets = []
    for shard in range(shards):
        mine = [
            table.slice(end[shard], end[shard + 1] - end[shard])
            for table, end in zip(tables, ends, strict=True)
            if end[shard] < end[shard + 1]
        ]
        if mine:
            frame = pl.DataFrame(pa.concat_tables(mine)).drop("shard")
            path = work / f"bucket-{shard}.pickle"
            # Read again by this process alone.
            path.write_bytes(pickle.dumps(make_bucket(shard, [frame])))
            buckets.append(path)
    del tables
    for run in runs:
        run.unlink()
    return buckets


def _ask(step: Round, plan: Plan, buckets: list[Path]) -> Facts:
    """Merges the answers of all shards, some at a time."""
    answers: Iterator[Facts] = (step.facts(_load(path), plan) for path in buckets)
    merged: list[Facts] = []
    while some := list(itertools.islice(answers, _TOGETHER)):
        merged = [step.merge([*merged, *some])]
    return merged[0]


def _load(path: Path) -> Bucket:
    bucket = pickle.loads(path.read_bytes())
    assert isinstance(bucket, Bucket)  # for the type checker
    return bucket
