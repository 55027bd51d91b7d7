"""The preparation on many machines: the same rounds as an Apache Beam pipeline."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import polars as pl
from apache_beam.options.pipeline_options import PipelineOptions

from tfcsmf.config import Config
from tfcsmf.data.sharded.bucket import Bucket, make_bucket
from tfcsmf.data.sharded.local import all_rounds, first_plan, number_of_shards
from tfcsmf.data.sharded.pieces import (
    Piece,
    Source,
    find_source,
    read_piece,
    shards_of,
)
from tfcsmf.data.sharded.plan import Plan
from tfcsmf.data.sharded.rounds import Facts, Round
from tfcsmf.data.sharded.store import check_target

_TOGETHER = 16  # answers that are merged at once


def prepare_with_beam(
    config: Config,
    folder: str | os.PathLike[str],
    shards: int | None = None,
    options: Sequence[str] = (),
) -> None:
    """Prepares a log as `prepare_sharded` does, to the same files, by a Beam runner.

    A worker holds some shards, and the ids of all users and items. All workers have
    to reach the log and the folder under the same names.

    Args:
      config: as for `prepare_sharded`.
      folder: to write into; new or empty.
      shards: into how many files; default one per 250,000 rows.
      options: of Beam, such as `["--runner=FlinkRunner", "--flink_master=host:8081"]`.

    Raises:
      DataError: if the files of the log break a rule, or the folder holds something.
        Rules about single rows are checked by workers, whose errors Beam wraps.
    """
    source = find_source(config)
    folder = os.fspath(folder)
    check_target(folder)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        add_rounds(pipeline, config, source, folder, number_of_shards(source, shards))


def add_rounds(
    pipeline: beam.Pipeline, config: Config, source: Source, folder: str, shards: int
) -> beam.PCollection[Plan]:
    """Adds the whole preparation to a pipeline; returns the final plan."""
    buckets = (
        pipeline
        | "Pieces" >> beam.Create(source.pieces, reshuffle=True)
        | "Deal" >> beam.FlatMap(_deal, source, config, shards)
        | "Shards" >> beam.GroupByKey()
        | "Code" >> beam.MapTuple(_collect)
    )
    plan = pipeline | "Plan" >> beam.Create([first_plan(config)])
    for number, step in enumerate(all_rounds(config, source, folder)):
        name = f"{number} {type(step).__name__}"
        facts = (
            buckets
            | f"{name}: facts" >> beam.Map(step.facts, beam.pvalue.AsSingleton(plan))
            | f"{name}: merge" >> beam.CombineGlobally(_Merge(step)).without_defaults()
        )
        plan = facts | f"{name}: decide" >> beam.Map(
            _decide, step, beam.pvalue.AsSingleton(plan)
        )
    return plan


def _deal(
    piece: Piece, source: Source, config: Config, shards: int
) -> Iterator[tuple[int, bytes]]:
    for frame in read_piece(piece, source, config):
        shard = shards_of(frame["user_id"], shards).alias("shard")
        parts = frame.with_columns(shard).partition_by(
            "shard", as_dict=True, include_key=False
        )
        for (number,), part in parts.items():
            buffer = io.BytesIO()
            part.write_ipc(buffer, compression="zstd")
            yield number, buffer.getvalue()


def _collect(number: int, parts: Iterable[bytes]) -> Bucket:
    return make_bucket(number, [pl.read_ipc(io.BytesIO(part)) for part in parts])


def _decide(facts: Facts, step: Round, plan: Plan) -> Plan:
    return step.decide(plan, facts)


class _Merge(beam.CombineFn):
    """Merges the answers of shards, some at a time."""

    def __init__(self, step: Round) -> None:
        self._step = step

    def create_accumulator(self) -> list[Facts]:
        return []

    def add_input(self, accumulator: list[Facts], element: Facts) -> list[Facts]:
        return self._compacted([*accumulator, element], _TOGETHER)

    def merge_accumulators(self, accumulators: Iterable[list[Facts]]) -> list[Facts]:
        return self._compacted([part for some in accumulators for part in some], 1)

    def extract_output(self, accumulator: list[Facts]) -> Facts:
        return self._step.merge(accumulator)

    def _compacted(self, facts: list[Facts], most: int) -> list[Facts]:
        return facts if len(facts) <= most else [self._step.merge(facts)]
