"""Training from disk: does the input keep up?

    python benchmarks/stored_input.py [--folder PREPARED] [--quick]

Trains the first stage on batches of a log prepared in shards (pipelines/prepare.py;
without --folder a simulated one): from its files, from the same log in memory, of
which at most `--memory-shards` shards are read, and on batches that are ready. With 0
the log is not read, and the peak memory that of a run from the folder. `input
alone` makes the batches of the files and trains nothing. The batch is the
configuration's, the candidates its 1,024 uniform negatives and the batch's positives.
`waiting` is the share of the time that training spent asking for the next batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import _harness as harness  # isort: skip

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import with_later_events
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.sharded.stored_batches import StoredBatches
from tfcsmf.data.simulator import simulate

SIZES = {
    **{"folder": "", "users": 5000, "items": 5000, "shards": 16},
    **{"memory_shards": 40, "together": 16, "steps": 100},
}
QUICK = {"users": 100, "items": 80, "shards": 4, "together": 2, "steps": 2}


def simulated(options: argparse.Namespace, path: Path) -> PreparedFolder:
    world = SimulatorConfig(users=options.users, items=options.items)
    log = simulate(world, Config().cascade.objectives, seed=0)
    log.events.write_parquet(path / "events.parquet")
    config = Config.from_dict({"data": {"events": str(path / "events.parquet")}})
    prepare_sharded(config, path / "prepared", options.shards)
    return PreparedFolder.open(path / "prepared")


def compare(
    report: harness.Report, options: argparse.Namespace, folder: PreparedFolder
) -> None:
    config = Config.from_dict({"cascade": {"objectives": list(folder.objectives)}})
    stage = config.cascade.stage
    settings = BatchSettings(
        stage.batch_size,
        config.loss.uniform_negatives,
        0,
        config.data.history_length,
        config.seed,
    )
    objective = folder.objectives[0]
    disk = StoredBatches(folder, objective, settings, together=options.together)
    # What a run has in memory, whether it is looked at here or not.
    log = folder.sample(options.together)
    # Endless, as in training, so that reading goes on over epochs.
    streams = {"tfcsmf, from disk": iter(disk.dataset(1.0, 0, 0, 10**9))}
    in_memory = 0
    if options.memory_shards:
        read = folder.read(folder.shards[: options.memory_shards])
        read = with_later_events(read) if folder.with_later else read
        memory = StageBatches(read, objective, settings)
        streams["tfcsmf, from memory"] = iter(memory.dataset(1.0, 0, 0, 10**9))
        in_memory = len(memory.rows)
    model = build_model(config, log)
    step = StageStep(model, stage, disk.element_spec)
    step.start("train", 0)
    ready = list(disk.dataset(1.0, 0, 0, options.steps))
    alone = iter(disk.dataset(1.0, 0, 0, 10**9))

    waiting: dict[str, list[float]] = {}

    def train(name, batches):
        began, waited, batches = time.perf_counter(), 0.0, iter(batches)
        for _ in range(options.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            loss = step(batch)
        float(loss)
        share = waited / (time.perf_counter() - began)
        waiting.setdefault(name, []).append(share)

    systems = {
        name: lambda name=name, stream=stream: train(name, stream)
        for name, stream in streams.items()
    }
    systems["tfcsmf, ready batches"] = lambda: train("tfcsmf, ready batches", ready)
    systems["tfcsmf, from disk, input alone"] = lambda: [
        next(alone) for _ in range(options.steps)
    ]
    seconds = harness.interleave(systems, options.repeats)
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        rates = [options.steps / value for value in values]
        more = {"times_disk": first / statistics.median(values)}
        if name in waiting:
            # Of the first call, too, which is a warm-up: the median drops it.
            more["waiting"] = statistics.median(waiting[name])
        report.add(name, {"batch": disk.batch_size}, "steps/s", rates, **more)
    rows = folder.rows(0)
    report.note(
        f"{int(rows.sum()):,} rows of {objective} in {len(rows)} shards, "
        f"{options.together} read together; {in_memory:,} rows in memory; "
        f"{folder.users.size:,} users, {folder.items.size:,} items"
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("stored_input", __doc__, argv, SIZES, QUICK)
    report = harness.Report(options)
    report.head()
    with tempfile.TemporaryDirectory() as path:
        folder = (
            PreparedFolder.open(options.folder)
            if options.folder
            else simulated(options, Path(path))
        )
        compare(report, options, folder)
    report.note(f"peak memory of this process: {harness.peak_memory():.2f} GiB")
    report.write()


if __name__ == "__main__":
    main()
