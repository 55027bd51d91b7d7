"""What ESANS costs: a training step beside in-batch + logQ, and clustering.

    python benchmarks/negatives.py [--batch 512] [--items 1000000] [--quick]

1. Steps with ESANS against in-batch + logQ steps of the same batch and as many
   distinct candidates (uniform draws make up the difference), on a simulated log: of
   batches in memory, and with the input pipeline that draws them.
2. Two-level clustering of random vectors around random centres, peak memory included.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.samplers import stage_negatives
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import ClusterConfig, Config, EsansConfig
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.negatives.clusters import cluster_vectors
from tfcsmf.negatives.esans import EsansSampler
from tfcsmf.negatives.sampler import NegativeSampler, PoolSampler

SIZES = {
    "batch": 512,
    "steps": 20,
    "easy": 8,
    "hard": 8,
    "clusters": 32,
    "log_users": 4000,
    "log_items": 50_000,
    "items": 1_000_000,
    "width": 128,
}
QUICK = {
    "batch": 32,
    "steps": 2,
    "clusters": 3,
    "log_users": 100,
    "log_items": 100,
    "items": 3000,
    "width": 8,
}
NAMES = ("in-batch + logQ, as many candidates", "ESANS")


def stage(
    log: PreparedLog, config: Config, sampler: NegativeSampler, batch: int
) -> tuple[StageStep, StageBatches]:
    settings = BatchSettings(
        batch, 0, 0, config.data.history_length, config.seed, sampler=sampler
    )
    batches = StageBatches(log, log.objectives[0], settings)
    model = build_model(config, log)
    model.sampling_probability = batches.probability
    model.negatives = stage_negatives(config, batches, model.dimension)
    step = StageStep(model, config.cascade.stage, batches.element_spec)
    step.start("train", 0)
    return step, batches


def candidates(batches: StageBatches, steps: int) -> float:
    """Distinct candidates of a batch, on average."""
    chosen = batches.dataset(1.0, 0, 0, steps)
    return statistics.mean(len(batch["items"]) for batch in chosen)


def by_sampler(report: harness.Report, options: argparse.Namespace) -> None:
    config = Config.from_dict(
        {"simulator": {"users": options.log_users, "items": options.log_items}}
    )
    log = prepare(config)
    rng = np.random.default_rng(0)
    size, count = log.items.size, options.clusters
    first, second = rng.integers(count, size=(2, size)).astype(np.int32)
    esans = EsansSampler(
        first,
        second,
        rng.normal(size=(count, 64)),
        log.items.trained,
        EsansConfig(easy=options.easy, hard=options.hard),
    )
    ours = stage(log, config, esans, options.batch)
    wanted = candidates(ours[1], options.steps)
    draws = 0
    for _ in range(4):  # draws that hit a candidate twice give none
        plain = stage(log, config, PoolSampler(draws, size), options.batch)
        draws += round(wanted - candidates(plain[1], options.steps))
    plain = stage(log, config, PoolSampler(draws, size), options.batch)
    for kind in ("in memory", "with input pipeline"):
        systems = {
            name: runner(*pair, options.steps, kind == "in memory")
            for name, pair in zip(NAMES, (plain, ours), strict=True)
        }
        seconds = harness.interleave(systems, options.repeats)
        peer = statistics.median(seconds[NAMES[0]])
        for name, pair in zip(NAMES, (plain, ours), strict=True):
            report.add(
                name,
                {"batch": pair[1].batch_size, "batches": kind},
                "ms/step",
                [1e3 * value / options.steps for value in seconds[name]],
                times_in_batch=statistics.median(seconds[name]) / peer,
                candidates=candidates(pair[1], options.steps),
            )


def runner(
    step: StageStep, batches: StageBatches, steps: int, in_memory: bool
) -> Callable[[], None]:
    ready = list(batches.dataset(1.0, 0, 0, steps)) if in_memory else []
    stream = iter(batches.dataset(1.0, 0, 0, 10**9))

    def run() -> None:
        for number in range(steps):
            loss = step(ready[number] if in_memory else next(stream))
        float(loss)

    return run


def cluster(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    size, width = options.items, options.width
    centres = rng.normal(size=(1000, width)).astype(np.float32)
    vectors = centres[rng.integers(1000, size=size)]
    vectors += 0.5 * rng.standard_normal((size, width), np.float32)
    cluster_vectors({"vector": vectors}, ClusterConfig(), seed=0)


def clustering(report: harness.Report, options: argparse.Namespace) -> None:
    values = harness.interleave({"": lambda: cluster(options)}, 1, warm_up=False)[""]
    report.add(
        "two-level clustering",
        {"items": options.items, "width": options.width},
        "s",
        values,
        peak_memory_gib=harness.memory_of(__file__, options, "clusters"),
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("negatives", __doc__, argv, SIZES, QUICK)
    if options.child:
        harness.run_child(options, lambda: cluster(options))
        return
    report = harness.Report(options)
    report.head()
    by_sampler(report, options)
    clustering(report, options)
    report.write()


if __name__ == "__main__":
    main()
