"""How cost grows with the catalogue, the number of objectives and the batch.

    python benchmarks/scale.py [--parts catalogue objectives batch] [--quick]
    python benchmarks/scale_figures.py --help     draws the results

catalogue: the table of candidates with its owners and Adam's slots; encoding the
    catalogue (three passes, one per objective); both indexes. Each of these is a
    process of its own: its peak counts imports and what it is given. The model is
    untrained with items in groups, kind to approximate indexes. ScaNN is built up to
    `--scann-up-to`; the recall reported is that of queries it was not calibrated on.
objectives: cascades of 1 to 8 levels of the simulator, all with the history of the
    first level alone, so that nothing but the number of objectives differs. Recalls
    leave out what a user is known to have seen. Training includes the compilation
    of each stage's step. Queries are those of exported models, in turn; catalogues
    larger than the simulator's are filled up with items like those.
batch: training from memory against stock TFRS, as in `training.py`, whose part 2 is
    about the rows of tables.
"""

from __future__ import annotations

import argparse
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
import tensorflow as tf
import training
from _scale_objectives import by_objectives
from scale_figures import ENCODE, OURS, STOCK, TABLE

from tfcsmf.cascade.model import CSMF
from tfcsmf.config import RetrievalConfig
from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.evaluation.topk import Catalogue
from tfcsmf.optimizers import RowAdam
from tfcsmf.retrieval.exact_index import Index
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.towers import MaskedEmbedding

SIZES = {
    "parts": ["catalogue", "objectives", "batch"],
    "repeats": 3,
    # catalogue
    "items": [10_000, 100_000, 1_000_000],
    "table_up_to": 1_000_000,
    "scann_up_to": 1_000_000,
    "k": 100,
    "query_batch": [1, 32],
    "requests": 100,
    "seconds": 20.0,
    # objectives
    "objectives": [1, 2, 3, 4, 6, 8],
    "level_users": 1500,
    "level_items": 1500,
    "served_items": [1500, 100_000],
    "exposures": 80,
    "epochs": 3,
    # batch
    "batch": [256, 512, 1024, 2048, 4096, 8192],
    "optimizer": ["adam", "adagrad"],
    "users": 200_000,
    "batch_items": 100_000,
    "examples": 16_384,
}
QUICK = {
    "items": [2000, 5000],
    "k": 10,
    "query_batch": [1, 4],
    "requests": 5,
    "objectives": [1, 2],
    "level_users": 100,
    "level_items": 100,
    "served_items": [100, 300],
    "exposures": 20,
    "epochs": 1,
    "batch": [32, 64],
    "optimizer": ["adagrad"],
    "users": 2000,
    "batch_items": 1000,
    "examples": 64,
}
DIMENSION, STAGES, QUERIES = 64, 3, 700
HELD_OUT = 200  # of the queries: not for calibration
ENCODED = 4096  # candidates per call, as `Encoder`
FILLED = 2**18  # table rows drawn at once
ADAM_BYTES = 4 + 1 + 2 * 4  # per entry: weight, owner, two moments

Result = dict[str, Any]


def alone(options: argparse.Namespace, task: Result) -> Result:
    """Runs a task in a process of its own; in this one with `--no-memory`."""
    if not options.memory:
        return TASKS[task["part"]](options, task)
    command = [sys.executable, __file__, *options.argv, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{task} failed by itself (exit {done.returncode}; -9 is mostly a lack of "
            f"memory):\n{done.stderr[-2000:]}"
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(options: argparse.Namespace) -> None:
    task = json.loads(options.child)
    result = TASKS[task["part"]](options, task)
    # A task that goes on to check itself has taken its peak before.
    print(json.dumps({"peak_memory_gib": harness.peak_memory()} | result))


def resident() -> float:
    """Returns what this process holds now, GiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024 / harness.GIB


# Part `catalogue`.


def table_task(options: argparse.Namespace, task: Result) -> Result:
    """Holds a table with all that training needs of it."""
    tf.random.normal([1])  # TensorFlow itself takes memory at the first operation
    before = resident()
    table = MaskedEmbedding(task["items"] + NUM_RESERVED, DIMENSION, name=CANDIDATE_ID)
    table.build(None)
    optimizer = RowAdam(1e-2)
    optimizer.build([table.table])
    optimizer.update_only(table.owned_parameters("candidate"))
    return {"measured_gib": resident() - before}


def grouped_towers(items: int) -> CSMF:
    """An untrained model of three stages; rows have the vectors of their group.

    As `fused_query.grouped_model`, for tables that are too large for copies.
    """
    model = training.two_towers(QUERIES, items)
    rng = np.random.default_rng(0)
    for parameter in model.owned_parameters:
        # The first stage owns every weight; the output dimensions are divided.
        parameter.owner.assign(tf.zeros_like(parameter.owner))
        if parameter.role == "table":
            rows, width = parameter.variable.shape
            groups = rng.standard_normal((max(2, rows // 1000), width), np.float32)
            for start, stop in blocks(rows, FILLED):
                values = rng.standard_normal((stop - start, width), np.float32)
                values *= 0.25
                values += groups[rng.integers(len(groups), size=stop - start)]
                parameter.variable.scatter_update(
                    tf.IndexedSlices(values, tf.range(start, stop))
                )
    owner = np.sort(np.arange(model.dimension) % STAGES).astype(np.int8)
    model.block_owner.assign(owner)
    return model


def blocks(size: int, block: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + block, size)) for start in range(0, size, block))


def encode_task(options: argparse.Namespace, task: Result) -> Result:
    """Encodes the catalogue, and queries for the indexes; leaves both as files."""
    items, folder = task["items"], Path(task["folder"])
    model = grouped_towers(items)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def encode(rows: tf.Tensor) -> tf.Tensor:
        return model.all_blocks({CANDIDATE_ID: rows}, STAGES)

    vectors = np.empty((items, DIMENSION), np.float32)
    encode(tf.range(2))  # compiles
    rates, seconds = [], []
    # In tenths, to show the spread.
    for first, last in blocks(items, -(-items // 10)):
        began = time.perf_counter()
        for start, stop in blocks(last - first, ENCODED):
            rows = tf.range(first + start, first + stop) + NUM_RESERVED
            vectors[first + start : first + stop] = encode(rows).numpy()
        seconds.append(time.perf_counter() - began)
        rates.append((last - first) / seconds[-1])
    peak = harness.peak_memory()
    np.save(folder / "vectors.npy", vectors)
    rows = tf.range(QUERIES) + NUM_RESERVED
    queries = [model.query_vectors({QUERY_ID: rows}, s) for s in range(STAGES)]
    stacked = np.stack(queries, axis=1)  # [Q, S, d]
    sample = vectors[:: max(1, items // 5000)]
    # Spread within queries, as in `objective_scales`.
    spread = np.einsum("qsd,cd->qsc", stacked, sample).std(axis=2)
    scales = np.sqrt(np.square(spread).mean(axis=0))[:, np.newaxis]
    np.save(folder / "queries.npy", (stacked / scales).astype(np.float32))
    return {"rates": rates, "seconds": seconds, "peak_memory_gib": peak}


def index_task(options: argparse.Namespace, task: Result) -> Result:
    """Builds an index as an export does, and asks it."""
    # Imported late, as the index is.
    from tfcsmf.retrieval.approximate import random_fusions

    folder = Path(task["folder"])
    vectors, queries = (
        np.load(folder / name) for name in ("vectors.npy", "queries.npy")
    )
    held_out = random_fusions(queries[-HELD_OUT:], seed=1)
    settings = RetrievalConfig(
        index=task["index"],
        k=options.k,
        calibration_queries=QUERIES - HELD_OUT,
    )
    began = time.perf_counter()
    index = build_index(vectors, queries[:-HELD_OUT], settings)
    result: Result = {"build_s": time.perf_counter() - began}
    del vectors  # the index has its own
    result["milliseconds"] = {
        str(batch): request_times(index, held_out, batch, options)
        for batch in options.query_batch
    }
    result["peak_memory_gib"] = harness.peak_memory()
    result["recall"] = 1.0 if index.is_exact else recall(index, held_out)
    result["index"] = {
        name: value
        for name, value in index.describe().items()
        if name in ("num_leaves", "leaves_to_search", "reorder")
    }
    return result


def request_times(
    index: Index, queries: np.ndarray, batch: int, options: argparse.Namespace
) -> list[float]:
    """Milliseconds per request: `--requests`, fewer if that takes too long."""

    @tf.function(input_signature=[tf.TensorSpec([None, DIMENSION], tf.float32)])
    def search(queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index.search(queries, index.k)

    rng = np.random.default_rng(0)
    times: list[float] = []
    began = time.perf_counter()
    for number in range(-2, options.requests):  # two that are not counted
        part = tf.constant(queries[rng.integers(len(queries), size=batch)])
        start = time.perf_counter()
        search(part)[1].numpy()
        now = time.perf_counter()
        if number >= 0:
            times.append(1e3 * (now - start))
        if len(times) >= 3 and now - began > options.seconds:
            break
    return times


def recall(index: Index, queries: np.ndarray) -> float:
    _, exact = Catalogue(index.vectors().numpy()).top_k(queries, index.k)
    _, found = index.search(tf.constant(queries), index.k)
    shares = [
        np.isin(truth, row).mean()
        for truth, row in zip(exact, found.numpy(), strict=True)
    ]
    return float(np.mean(shares))


def catalogue(report: harness.Report, options: argparse.Namespace) -> None:
    for items in options.items:
        setting = {"items": items}
        computed = (items + NUM_RESERVED) * DIMENSION * ADAM_BYTES / harness.GIB
        held: Result = {}
        if options.memory and items <= options.table_up_to:
            held = alone(options, {"part": "table", "items": items})
        report.add(TABLE, setting, "GiB", [computed], **held)
        with tempfile.TemporaryDirectory() as folder:
            task = {"items": items, "folder": folder}
            encoded = alone(options, task | {"part": "encode"})
            rates, seconds = encoded.pop("rates"), encoded.pop("seconds")
            report.add(
                ENCODE, setting, "vectors/s", rates, encode_s=sum(seconds), **encoded
            )
            kinds = ["exact", "scann"] if items <= options.scann_up_to else ["exact"]
            for kind in kinds:
                result = alone(options, task | {"part": "index", "index": kind})
                report.add(
                    f"{kind}: build",
                    setting,
                    "s",
                    [result["build_s"]],
                    peak_memory_gib=result.get("peak_memory_gib"),
                    **result["index"],
                )
                for batch, times in result["milliseconds"].items():
                    report.add(
                        f"{kind}: query",
                        setting | {"batch": int(batch)},
                        "ms",
                        times,
                        p99=float(np.percentile(times, 99)),
                        **{f"recall_{options.k}": result["recall"]},
                    )


# Part `batch`.


def build_run(
    options: argparse.Namespace, system: str, optimizer: str, batch: int
) -> tuple[training.Run, int]:
    """Returns a run over enough steps, and their number."""
    sizes = (options.users, options.batch_items)
    steps = max(2, options.examples // batch)
    draws = training.draw(*sizes, batch, steps)
    return BUILDS[system](*sizes, optimizer, draws), steps


def batch_task(options: argparse.Namespace, task: Result) -> Result:
    build_run(options, task["system"], task["optimizer"], task["batch"])[0]()
    return {}


def by_batch(report: harness.Report, options: argparse.Namespace) -> None:
    for optimizer in options.optimizer:
        for batch in options.batch:
            built = {
                name: build_run(options, name, optimizer, batch) for name in BUILDS
            }
            seconds = harness.interleave(
                {name: run for name, (run, _) in built.items()}, options.repeats
            )
            rates = {
                name: [built[name][1] * batch / value for value in values]
                for name, values in seconds.items()
            }
            del built
            peer = float(np.median(rates[STOCK]))
            for name, values in rates.items():
                task = {"system": name, "optimizer": optimizer, "batch": batch}
                peak = None
                if options.memory:
                    result = alone(options, task | {"part": "batch"})
                    peak = result["peak_memory_gib"]
                report.add(
                    name,
                    {"optimizer": optimizer, "batch": batch},
                    "examples/s",
                    values,
                    times_stock=float(np.median(values)) / peer,
                    peak_memory_gib=peak,
                )


BUILDS: dict[str, Callable[..., training.Run]] = {
    OURS: training.ours,
    STOCK: training.stock,
}
TASKS: dict[str, Callable[[argparse.Namespace, Result], Result]] = {
    "table": table_task,
    "encode": encode_task,
    "index": index_task,
    "batch": batch_task,
}
PARTS: dict[str, Callable[[harness.Report, argparse.Namespace], None]] = {
    "catalogue": catalogue,
    "objectives": by_objectives,
    "batch": by_batch,
}


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("scale", __doc__, argv, SIZES, QUICK)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        sys.exit(f"--parts should be of {list(PARTS)}. Received: {sorted(unknown)}.")
    if options.child:
        return run_child(options)
    report = harness.Report(options)
    report.head()
    for part in options.parts:
        PARTS[part](report, options)
    report.write()


if __name__ == "__main__":
    main()
