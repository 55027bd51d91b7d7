"""How well draws stand for the catalogue in a trained network's softmax.

    python benchmarks/denominators.py --comparison saved_models/negatives \
        [--system sampler_uniform] [--seed 0] [--quick]

The network is one of a finished comparison (`pipelines/compare.py`); without
`--comparison` one is trained on a simulated log. Asked are its validation queries.

1. By negatives of a batch: the logarithm of a sampled denominator, its draws weighted
   as the correction of sampling says, less that of the sum over the catalogue.
2. By ways to draw one negative: what it adds to the denominator, and how often it is
   what the user meets next, both as multiples of a uniform draw's. Easy and hard ones
   are those of ESANS for the positives that the user is trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np

from tfcsmf.baselines.registry import make_system
from tfcsmf.baselines.system import VectorSystem
from tfcsmf.config import Config, read_yaml
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.query_rows import group_examples
from tfcsmf.negatives.clusters import build_clusters
from tfcsmf.negatives.esans import cluster_probability

SIZES = {
    "comparison": "",
    "system": "sampler_uniform",
    "seed": 0,
    "draws": [64, 256, 1024, 4096],
    "queries": 200,
    "repeats": 20,
}
QUICK = {"draws": [4, 16], "queries": 20, "repeats": 2}
SIMULATED = {
    "simulator": {"users": 200, "items": 80},
    "cascade": {"objectives": ["exposure"], "stage": {"epochs": 1}},
}


def trained(options: argparse.Namespace) -> VectorSystem:
    """Loads the network; trains it where there is none yet."""
    tree = SIMULATED
    if options.comparison:
        tree = read_yaml(str(Path(options.comparison) / "config.yaml"))
    config = Config.from_dict(tree | {"seed": options.seed})
    log = prepare(config)
    log = dataclasses.replace(
        log, test=log.validation, test_histories=log.train_histories
    )
    system = make_system(options.system, config)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.comparison or folder)
        system.fit(log, root / "runs" / system.trained_as / f"seed{options.seed}")
    return system


class Softmax:
    """Probabilities of the items trained, given the validation queries.

    Attributes:
      share: float [q, N], of each negative in a query's denominator; known positives
        have none.
      held_out: float [q, N], 1 for what a query should find.
      pairs: (query, item) of the positives that the queries' users are trained on.
      popular: float [N], share of each item among training examples.
    """

    def __init__(self, system: VectorSystem, log: PreparedLog) -> None:
        objective = log.objectives[0]
        queries, size = log.test[objective], log.items.trained
        scores = (
            system.query_vectors(objective, queries).astype(np.float64)
            @ system.candidate_vectors(objective)[:size].T
        ) / system.config.loss.temperature
        number = np.full(log.users.size, -1)
        number[queries.users] = np.arange(len(queries.users))
        train = log.train[objective].pairs
        asked = (number[train.users] >= 0) & (train.items < size)
        self.pairs = number[train.users[asked]], train.items[asked]
        scores[self.pairs] = -np.inf
        targets = queries.targets
        owners = np.repeat(np.arange(len(queries.users)), np.diff(targets.offsets))
        able = targets.items < size
        self.target = owners[able], targets.items[able]
        self.held_out = np.zeros_like(scores)
        self.held_out[self.target] = 1.0
        self.share = np.exp(scores - scores.max(axis=1, keepdims=True))
        self.share /= self.share.sum(axis=1, keepdims=True)
        counts = np.bincount(train.items[train.items < size], minlength=size)
        self.popular = counts / counts.sum()

    def note(self, report: harness.Report) -> None:
        """Says how flat the softmax is."""
        falling = -np.sort(-self.share, axis=1)
        tops = {k: falling[:, :k].sum(axis=1).mean() for k in (16, 100, 1000)}
        mine = self.share[self.target]
        ranks = (self.share[self.target[0]] > mine[:, None]).sum(axis=1)
        report.note(
            f"{self.share.shape[0]} queries, {self.share.shape[1]} items; share of the "
            + ", ".join(f"{k} highest: {value:.3f}" for k, value in tops.items())
            + f"; held-out item: median rank {np.median(ranks) + 1:.0f}, "
            f"probability {mine.mean():.4f}"
        )


def by_pool(
    report: harness.Report, options: argparse.Namespace, softmax: Softmax, batch: int
) -> None:
    """Measures sampled denominators; `batch` is the positives of a batch."""
    rng = np.random.default_rng(0)
    size = softmax.share.shape[1]
    pools = {f"uniform, {n:,}": (0, n) for n in options.draws}
    pools |= {f"in-batch, {batch:,}": (batch, 0)}
    pools |= {f"in-batch and {n:,} uniform": (batch, n) for n in options.draws[-2:]}
    for name, (popular, uniform) in pools.items():
        errors, distinct = [], []
        for _ in range(options.repeats):
            count = np.bincount(rng.integers(size, size=uniform), minlength=size)
            count += rng.multinomial(popular, softmax.popular)
            expected = popular * softmax.popular + uniform / size
            weight = np.divide(count, expected, where=count > 0, out=np.zeros(size))
            queries = min(options.queries, len(softmax.share))
            rows = rng.choice(len(softmax.share), queries, replace=False)
            errors.append(np.log(softmax.share[rows] @ weight + 1e-30))
            distinct.append(np.count_nonzero(count))
        report.add(
            name,
            {"batches": options.repeats},
            "deviation",
            [float(np.std(errors))],
            mean_error=float(np.mean(errors)),
            distinct=float(np.mean(distinct)),
        )


def by_draw(
    report: harness.Report, softmax: Softmax, system: VectorSystem, log: PreparedLog
) -> None:
    """Measures what single negatives are worth, by where they come from."""
    settings = system.config.loss.negatives.esans
    clusters = build_clusters(log, settings.clusters, system.config.seed)
    size = softmax.share.shape[1]
    first = clusters.first[:size]
    kinds, width = len(clusters.centres), int(clusters.second.max()) + 1
    codes = first * width + clusters.second[:size]
    known = first >= 0
    queries, positives = (part[known[softmax.pairs[1]]] for part in softmax.pairs)
    near, own = first[positives], codes[positives]

    def sums(values: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
        """Adds up columns of one number, [..., N] -> [..., count]."""
        chosen = np.zeros((size, count))
        chosen[np.flatnonzero(known), numbers[known]] = 1.0
        return values @ chosen

    sizes = sums(np.ones(size), first, kinds)
    own_sizes = sums(np.ones(size), codes, kinds * width)
    chance = cluster_probability(clusters.centres, sizes, settings.distance_scale)
    others = sizes[near] - own_sizes[own]
    worth = {name: [] for name in ("uniform", "popular", "easy", "hard")}
    for values in (softmax.share, softmax.held_out):
        by_first = sums(values, first, kinds)
        by_codes = sums(values, codes, kinds * width)
        mean = by_first / np.maximum(sizes, 1)
        hard = by_first[queries, near] - by_codes[queries, own]
        hard = hard[others > 0] / others[others > 0]
        easy = np.einsum("nk,nk->n", chance[near], mean[queries])
        # By training pairs, as ESANS draws.
        uniform = values.mean(axis=1)[queries].mean()
        found = (values @ softmax.popular)[queries].mean()
        for name, value in zip(
            worth, (uniform, found, easy.mean(), hard.mean()), strict=True
        ):
            worth[name].append(float(value / max(uniform, 1e-30)))
    for name, (share, held_out) in worth.items():
        report.add(
            f"{name} draw",
            {"clusters": f"{kinds}x{width}"},
            "x uniform",
            [share],
            held_out=held_out,
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("denominators", __doc__, argv, SIZES, QUICK)
    report = harness.Report(options)
    report.head()
    system = trained(options)
    log = system.log
    softmax = Softmax(system, log)
    softmax.note(report)
    rows = group_examples(log.train[log.objectives[0]])
    batch = min(system.config.stage(log.objectives[0]).batch_size, len(rows))
    targets = batch * rows.expected_targets(system.config.data.target_share)
    by_pool(report, options, softmax, round(targets))
    by_draw(report, softmax, system, log)
    report.write()


if __name__ == "__main__":
    main()
