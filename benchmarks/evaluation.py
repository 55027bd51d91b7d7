"""Whole-catalogue evaluation: exact top k of every query, against FactorizedTopK.

    python benchmarks/evaluation.py [--queries 10000] [--items 1000000] [--quick]

1. recall@k of the same queries against a catalogue both can manage; the recalls
   must be equal.
2. Ours alone at the large size, with items excluded from every query.

Vectors are random, one target per query. FactorizedTopK gets what its documentation
shows, a dataset of candidate batches (`--peer-batch`): of 128 as in its documentation,
and of a size that suits it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.data.prepared import Csr
from tfcsmf.evaluation.metrics import per_user_metrics
from tfcsmf.evaluation.topk import Catalogue

SIZES = {
    "queries": 10_000,
    "peer_items": 100_000,
    "items": 1_000_000,
    "dimension": 64,
    "k": 100,
    "excluded": 20,
    "peer_batch": [128, 4096],
    "query_batch": 512,
    "repeats": 3,
}
QUICK = {
    "queries": 300,
    "peer_items": 2000,
    "items": 20_000,
    "k": 10,
    "peer_batch": [512],
}
OURS, PEER, LARGE = "tfcsmf", "tfrs.metrics.FactorizedTopK", "tfcsmf, with exclusions"


Run = Callable[..., None]


def vectors(rows: int, dimension: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, dimension), np.float32)


class Comparison:
    """The same evaluation by both; each run leaves its recalls in `recall`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.recall: dict[str, dict[int, float]] = {}
        self.ks = [k for k in (1, 5, 10, 50, 100) if k < options.k] + [options.k]
        self.candidates = vectors(options.peer_items, options.dimension, 0)
        rng = np.random.default_rng(1)
        targets = rng.integers(options.peer_items, size=options.queries)
        # Part of the target's own vector: recalls between 0 and 1.
        self.queries = vectors(options.queries, options.dimension, 2)
        self.queries += 0.4 * self.candidates[targets]
        self.targets = targets.astype(np.int32)

        self.peers = {
            f"{PEER}, batch({size})": self._peer(size) for size in options.peer_batch
        }

    def systems(self) -> dict[str, Run]:
        """What is compared, by name."""
        peers = {name: functools.partial(self.peer, name) for name in self.peers}
        return {OURS: self.ours} | peers

    def ours(self, count: int | None = None) -> None:
        """Evaluates the first `count` queries."""
        catalogue = Catalogue(self.candidates)
        queries, targets = self.queries[:count], self.targets[:count]
        _, positions = catalogue.top_k(queries, self.options.k)
        one_each = Csr(np.arange(len(targets) + 1), targets)
        values = per_user_metrics(positions, one_each, self.ks)
        self.recall[OURS] = {k: float(values[f"recall@{k}"].mean()) for k in self.ks}

    def peer(self, name: str, count: int | None = None) -> None:
        """The same."""
        metric, update = self.peers[name]
        queries, targets = self.queries[:count], self.targets[:count]
        metric.reset_states()
        for start in range(0, len(queries), self.options.query_batch):
            part = slice(start, start + self.options.query_batch)
            update(tf.constant(queries[part]), tf.constant(targets[part]))
        recalls = (float(value) for value in metric.result())
        self.recall[name] = dict(zip(self.ks, recalls, strict=True))

    def _peer(self, batch: int) -> tuple[tf.keras.layers.Layer, Callable[..., None]]:
        table = tf.constant(self.candidates)
        ids = tf.data.Dataset.range(len(self.candidates), output_type=tf.int32)
        candidates = ids.batch(batch).map(lambda part: (part, tf.gather(table, part)))
        streaming = tfrs.layers.factorized_top_k.Streaming(k=self.options.k)
        metric = tfrs.metrics.FactorizedTopK(
            streaming.index_from_dataset(candidates), ks=self.ks
        )

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, self.options.dimension], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def update(queries: tf.Tensor, targets: tf.Tensor) -> None:
            own = tf.gather(table, targets)
            metric.update_state(queries, own, true_candidate_ids=targets)

        return metric, update

    def check(self) -> None:
        for k in self.ks:
            values = [recalls[k] for recalls in self.recall.values()]
            # FactorizedTopK averages in float32; half a query tells them apart.
            if max(values) - min(values) > 0.5 / self.options.queries + 1e-6:
                raise AssertionError(f"recall@{k} should be equal: {values}")


def large(options: argparse.Namespace) -> Callable[[], None]:
    """Ours at full size; laying out the catalogue is part of the time."""
    rng = np.random.default_rng(3)
    queries = vectors(options.queries, options.dimension, 4)
    candidates = vectors(options.items, options.dimension, 5)
    excluded = rng.integers(options.items, size=(options.queries, options.excluded))
    offsets = np.arange(options.queries + 1) * options.excluded
    exclude = Csr(offsets, excluded.ravel().astype(np.int32))

    def run() -> None:
        Catalogue(candidates).top_k(queries, options.k, exclude)

    return run


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("evaluation", __doc__, argv, SIZES, QUICK)
    if options.child == LARGE:
        return harness.run_child(options, large(options))
    comparison = Comparison(options)
    systems = comparison.systems()
    if options.child:
        return harness.run_child(options, systems[options.child])
    report = harness.Report(options)
    report.head()
    for run in systems.values():
        run(1)  # compiles
    seconds = harness.interleave(systems, options.repeats, warm_up=False)
    comparison.check()
    ours = statistics.median(seconds[OURS])
    for name, values in seconds.items():
        report.add(
            name,
            {"queries": options.queries, "items": options.peer_items, "k": options.k},
            "s",
            values,
            times_tfcsmf=statistics.median(values) / ours,
            peak_memory_gib=harness.memory_of(__file__, options, name),
        )
    shown = ", ".join(
        f"@{k} {value:.4f}" for k, value in comparison.recall[OURS].items()
    )
    report.note(f"recalls of all are equal: {shown}")
    runs = harness.interleave({LARGE: large(options)}, options.repeats, warm_up=False)
    report.add(
        LARGE,
        {"queries": options.queries, "items": options.items, "k": options.k},
        "s",
        runs[LARGE],
        peak_memory_gib=harness.memory_of(__file__, options, LARGE),
    )
    report.write()


if __name__ == "__main__":
    main()
