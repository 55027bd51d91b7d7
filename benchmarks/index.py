"""Indexes over the same vectors: latency, throughput and recall under random weights.

    python benchmarks/index.py [--items 100000 1000000] [--data clustered scattered]
        [--systems exact ivf ...] [--quick]

`exact`, `ivf` and `scann` are ours, calibrated to `--target-recall`; `TFRS ...` are the
layers of tensorflow-recommenders with their defaults; `ScaNN by hand` is the fastest of
a grid (leaves, leaves searched, candidates re-ranked) with that recall on calibration
queries, or the best of it; faiss (IVF), hnswlib and usearch are widened to it, and left
out where they are not installed. Every index lives in a process of its own, all at a
time; requests take turns between them. Recall is that of held-out queries, fused with
random weights, against the true best.

`clustered`: a group of about 1000 items each, with noise of half the spread of the
groups. `scattered`: normal vectors without any groups, where nearly all of 64
dimensions matter: no index of its size can leave much out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np

SIZES = {
    "items": [100_000, 1_000_000],
    "data": ["clustered", "scattered"],
    "systems": [
        *("exact", "ivf", "scann", "ScaNN by hand", "TFRS BruteForce", "TFRS ScaNN"),
        *("faiss", "hnswlib", "usearch"),
    ],
    "batch": [1, 32],
    "requests": 60,
    "k": 50,
    "target_recall": 0.95,
    "repeats": 5,
}
QUICK = {"items": [3000], "requests": 5, "k": 10, "batch": [1, 4]}
DIMENSION, STAGES, QUERIES, HELD_OUT = 64, 3, 500, 300
SHARES = (64, 32, 16, 8, 4, 2, 1)  # one of so many leaves is searched
PACKAGES = {"faiss": "faiss", "hnswlib": "hnswlib", "usearch": "usearch"}
PACKAGES |= dict.fromkeys(("scann", "ScaNN by hand", "TFRS ScaNN"), "scann")

Search = Callable[[np.ndarray], np.ndarray]  # [B, d] -> positions [B, k]
Built = tuple[Search, dict[str, Any]]


def draw(items: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [C, d] and query vectors per objective [Q, S, d]."""
    rng = np.random.default_rng(0)
    shape = (QUERIES + HELD_OUT, STAGES, DIMENSION)
    vectors = rng.standard_normal((items, DIMENSION), np.float32)
    queries = rng.standard_normal(shape, np.float32)
    if kind == "clustered":
        groups = max(20, items // 1000)
        centres = rng.standard_normal((groups, DIMENSION), np.float32)
        vectors = 0.5 * vectors + centres[rng.integers(groups, size=items)]
        queries = 0.5 * queries + centres[rng.integers(groups, size=shape[:2])]
    return vectors, queries


def ours(kind: str) -> Callable[..., Built]:
    def build(vectors: np.ndarray, queries: np.ndarray, options: Any) -> Built:
        from tfcsmf.config import RetrievalConfig
        from tfcsmf.retrieval.indexes import build_index

        settings = RetrievalConfig(
            index=kind, k=options.k, target_recall=options.target_recall
        )
        index = build_index(vectors, queries, settings)
        names = ("tiles", "tile", "probes", "oversampling", "num_leaves")
        names += ("leaves_to_search", "reorder")
        found = index.describe()
        search = traced(lambda part: index.search(part, options.k)[1])
        return search, {name: found[name] for name in names if name in found}

    return build


def traced(function: Callable[[Any], Any]) -> Search:
    import tensorflow as tf

    spec = tf.TensorSpec([None, DIMENSION], tf.float32)
    graph = tf.function(function, input_signature=[spec], autograph=False)
    return lambda queries: graph(tf.constant(queries)).numpy()


def tfrs_layer(name: str) -> Callable[..., Built]:
    def build(vectors: np.ndarray, queries: np.ndarray, options: Any) -> Built:
        import tensorflow as tf
        import tensorflow_recommenders as tfrs

        layer = getattr(tfrs.layers.factorized_top_k, name)(k=options.k)
        layer.index(tf.constant(vectors))
        return traced(lambda part: layer(part)[1]), {}

    return build


def build_scann_by_hand(
    vectors: np.ndarray, queries: np.ndarray, options: Any
) -> Built:
    from scann.scann_ops.py import scann_ops

    part = fused(queries, 0)[:200]
    truth = best(vectors, part, options.k)
    found = []
    for leaves in (round(len(vectors) ** 0.5 * share) for share in (0.5, 1, 2)):
        index = (
            scann_ops.builder(vectors, options.k, "dot_product")
            .tree(leaves, leaves, training_sample_size=min(len(vectors), 250_000))
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(options.k)
            .build()
        )
        for share, factor in itertools.product(SHARES, (1, 2, 4, 8)):
            setting = (factor * options.k, max(1, leaves // share))
            one, many = (
                traced(lambda q, ask=ask, s=setting: ask(q, options.k, *s)[0])
                for ask in (index.search_batched, index.search_batched_parallel)
            )
            short = max(0.0, options.target_recall - recall(many(part), truth))
            seconds = seconds_of(one, part[:1]) if short == 0.0 else 0.0
            more = {"num_leaves": leaves, "leaves_to_search": setting[1]}
            found.append(((short, seconds), one, many, more | {"reorder": setting[0]}))
    _, one, many, more = min(found, key=lambda entry: entry[0])
    return lambda part: (one if len(part) == 1 else many)(part), more


def seconds_of(search: Search, queries: np.ndarray) -> float:
    """The median of 15 searches, after two that are not counted."""
    times = []
    for number in range(-2, 15):
        began = time.perf_counter()
        search(queries)
        if number >= 0:
            times.append(time.perf_counter() - began)
    return float(np.median(times))


def widened(
    search: Search,
    widen: Callable[[int], None],
    vectors: np.ndarray,
    queries: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, int]:
    """Doubles a parameter until the recall on calibration queries is reached."""
    part = fused(queries, 0)[:200]
    truth = best(vectors, part, options.k)
    width = 4
    while True:
        widen(width)
        if recall(search(part), truth) >= options.target_recall or width >= 4096:
            return {"width": width}
        width *= 2


def fused(queries: np.ndarray, seed: int) -> np.ndarray:
    from tfcsmf.retrieval.approximate import random_fusions

    return random_fusions(queries, seed)


def best(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    from tfcsmf.evaluation.topk import top_k

    return top_k(queries, vectors, k)[1]


def build_faiss(vectors: np.ndarray, queries: np.ndarray, options: Any) -> Built:
    import faiss

    lists = max(4, round(4 * len(vectors) ** 0.5))
    quantizer = faiss.IndexFlatIP(DIMENSION)
    index = faiss.IndexIVFFlat(quantizer, DIMENSION, lists, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    sample = rng.choice(len(vectors), min(len(vectors), 64 * lists), replace=False)
    index.train(vectors[sample])
    index.add(vectors)

    def search(queries: np.ndarray) -> np.ndarray:
        return index.search(queries, options.k)[1]

    def widen(width: int) -> None:
        index.nprobe = min(width, lists)

    return search, widened(search, widen, vectors, queries, options)


def build_hnswlib(vectors: np.ndarray, queries: np.ndarray, options: Any) -> Built:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=DIMENSION)
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    index.add_items(vectors)

    def search(queries: np.ndarray) -> np.ndarray:
        return index.knn_query(queries, k=options.k)[0].astype(np.int64)

    def widen(width: int) -> None:
        index.set_ef(max(options.k, width))

    return search, widened(search, widen, vectors, queries, options)


def build_usearch(vectors: np.ndarray, queries: np.ndarray, options: Any) -> Built:
    from usearch.index import Index

    index = Index(ndim=DIMENSION, metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors)

    def search(queries: np.ndarray) -> np.ndarray:
        keys = index.search(queries, options.k).keys
        return keys.reshape(len(queries), -1).astype(np.int64)

    def widen(width: int) -> None:
        index.expansion_search = max(options.k, width)

    return search, widened(search, widen, vectors, queries, options)


BUILDERS: dict[str, Callable[..., Built]] = {
    "exact": ours("exact"),
    "ivf": ours("ivf"),
    "scann": ours("scann"),
    "ScaNN by hand": build_scann_by_hand,
    "TFRS BruteForce": tfrs_layer("BruteForce"),
    "TFRS ScaNN": tfrs_layer("ScaNN"),
    "faiss": build_faiss,
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
}


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    from tfcsmf.retrieval.approximate import overlap

    return overlap(np.asarray(found), truth)


def serve(options: argparse.Namespace, task: dict[str, Any]) -> Iterator[Any]:
    """Builds an index, then answers requests to measure it: seconds per request."""
    folder = Path(task["folder"])
    names = ("vectors", "queries", "truth")
    vectors, queries, truth = (np.load(folder / f"{name}.npy") for name in names)
    held_out = fused(queries[QUERIES:], 1)  # imports TensorFlow, which is no building
    began = time.perf_counter()
    search, more = BUILDERS[task["system"]](vectors, queries[:QUERIES], options)
    built = time.perf_counter() - began
    shares = [
        recall(search(held_out[start : start + 32]), truth[start : start + 32])
        for start in range(0, HELD_OUT - HELD_OUT % 32, 32)
    ]
    ask = yield {"build_s": built, "recall": float(np.mean(shares)), "more": more}
    rng = np.random.default_rng(0)
    while ask:
        times = []
        for number in range(-2, ask["requests"]):  # two that are not counted
            part = held_out[rng.integers(HELD_OUT, size=ask["batch"])]
            start = time.perf_counter()
            search(part)
            if number >= 0:
                times.append(time.perf_counter() - start)
        ask = yield times


class Served:
    """An index in a process of its own; here with `--no-memory`."""

    def __init__(self, options: argparse.Namespace, task: dict[str, Any]) -> None:
        self.process = None
        if not options.memory:
            self.local = serve(options, task)
            self.built = next(self.local)
            return
        command = [sys.executable, __file__, *options.argv]
        self.process = subprocess.Popen(
            [*command, "--child", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.built = self._read()

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"An index ended with status {self.process.wait()}.")
        return json.loads(line)

    def ask(self, batch: int, requests: int) -> list[float]:
        question = {"batch": batch, "requests": requests}
        if self.process is None:
            return self.local.send(question)
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def run_child(options: argparse.Namespace) -> None:
    served = serve(options, json.loads(options.child))
    print(json.dumps(next(served)), flush=True)
    for line in sys.stdin:
        print(json.dumps(served.send(json.loads(line))), flush=True)


def compare(
    report: harness.Report,
    options: argparse.Namespace,
    items: int,
    kind: str,
    names: Sequence[str],
) -> None:
    setting = {"items": items, "data": kind}
    with tempfile.TemporaryDirectory() as folder:
        vectors, queries = draw(items, kind)
        truth = best(vectors, fused(queries[QUERIES:], 1), options.k)
        arrays = {"vectors": vectors, "queries": queries, "truth": truth}
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array)
        del vectors, queries, arrays
        indexes: dict[str, Served] = {}
        try:
            for name in names:
                task = {"system": name, "folder": folder}
                indexes[name] = Served(options, task)
                built = indexes[name].built
                seconds, more = [built["build_s"]], built["more"]
                report.add(f"{name}: build", setting, "s", seconds, **more)
            for batch in options.batch:
                requests = max(3, options.requests // (1 if batch == 1 else 4))
                times: dict[str, list[float]] = {name: [] for name in names}
                for _ in range(options.repeats):
                    for name, index in indexes.items():
                        times[name] += index.ask(batch, requests)
                for name, values in times.items():
                    add(report, name, setting | {"batch": batch}, values, indexes[name])
        finally:
            for index in indexes.values():
                index.close()


def add(
    report: harness.Report,
    name: str,
    setting: dict[str, Any],
    seconds: list[float],
    index: Served,
) -> None:
    milliseconds = 1e3 * np.asarray(seconds)
    report.add(
        name,
        setting,
        "ms",
        milliseconds.tolist(),
        p99=float(np.percentile(milliseconds, 99)),
        queries_per_s=setting["batch"] / float(np.mean(seconds)),
        recall=index.built["recall"],
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("index", __doc__, argv, SIZES, QUICK)
    unknown = set(options.systems) - set(BUILDERS)
    if unknown:
        sys.exit(f"--systems: {sorted(unknown)} should be of {list(BUILDERS)}.")
    if options.child:
        return run_child(options)
    report = harness.Report(options)
    report.head()
    names = []
    for name in options.systems:
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            report.note(f"{name} is left out: {package} is not installed")
        else:
            names.append(name)
    for items in options.items:
        for kind in options.data:
            compare(report, options, items, kind, names)
    report.write()


if __name__ == "__main__":
    main()
