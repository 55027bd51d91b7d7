"""Training of sequence encoders, against the SASRec of a public library (RecTools).

    python benchmarks/sequences.py [--events E.parquet --items I.parquet
        --objective review] [--peer-python /path/to/python] [--quick]

The same sequences, T, width, layers, heads, dropout, optimizer and number of sequences
per batch; examples are places with a next item, so padding counts for nobody. Two
losses: the softmax over the whole catalogue, which is the same for both, and a sampled
one, which is not: ours has `--uniform` items and those of the batch as candidates of
every place, RecTools has `--negatives` of its own for each place. RecTools pads all
sequences to T; ours batches those of like length. Input pipelines are measured too.

RecTools is no requirement of tfcsmf. It is left out where it is missing; to have it:

    python -m venv peer && peer/bin/pip install "rectools[torch]==0.19.0"
    python benchmarks/sequences.py --peer-python peer/bin/python

The peak memory is that of a process that trains one system alone, imports included.
Examples per second of CPU say more than those per second where others use the machine,
with `--threads 1` above all: threads that wait for each other spin.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, StageConfig
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.sequences import merge_histories
from tfcsmf.heterrec.training import SequenceTrainer

DROPOUT = 0.2
WHOLE, SAMPLED = "whole catalogue", "sampled"
OURS = {
    "tfcsmf, SASRec": ("sasrec", WHOLE),
    "tfcsmf, SASRec, sampled": ("sasrec", SAMPLED),
    "tfcsmf, merged, sampled": ("merged", SAMPLED),
    "tfcsmf, HeterRec, sampled": ("heterrec", SAMPLED),
}
PEERS = {"RecTools, SASRec": "softmax", "RecTools, SASRec, sampled": "sampled_softmax"}
SIZES = {
    "events": "",
    "items": "",
    "objective": "exposure",
    "systems": [*OURS, *PEERS],
    "peer_python": sys.executable,
    "length": 50,
    "width": 64,
    "layers": 2,
    "heads": 2,
    "sequences": 128,
    "uniform": 512,
    "negatives": 128,
    "steps": 10,
    "threads": 0,
}
QUICK = {"length": 8, "width": 8, "layers": 1, "sequences": 16, "steps": 2}
QUICK |= {"uniform": 16, "negatives": 4}
MISSING = 'pip install "rectools[torch]==0.19.0" and name its python by --peer-python'

Run = Callable[[], tuple[float, float, int]]  # seconds, those of CPU, and examples


def configuration(options: argparse.Namespace, name: str, events: int) -> Config:
    encoder, loss = OURS[name]
    tables = {"events": options.events, "items": options.items}
    tree: dict[str, Any] = {
        "data": {kind: path for kind, path in tables.items() if path},
        "cascade": {"objectives": [options.objective]},
        "sequence": {
            "encoder": encoder,
            "length": options.length,
            "width": options.width,
            "item_layers": options.layers,
            "heads": options.heads,
            "feed_forward": options.width,  # as RecTools has it
            "dropout": DROPOUT,
            "steps": 1,
            "window": 1,
            "whole_catalogue": 10**9 if loss == WHOLE else 0,
            "uniform_negatives": options.uniform,
            "training": {"batch_events": events},
        },
    }
    if options.quick:
        tree["simulator"] = {"users": 150, "items": 100}
    return Config.from_dict(tree)


def trained_on(log: PreparedLog, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sequences that are trained on, as offsets and items."""
    sequences = merge_histories(log.train_histories)
    parts = [
        sequences.items[max(begin, end - length - 1) : end]
        for begin, end in itertools.pairwise(sequences.offsets)
        if end - begin >= 2
    ]
    lengths = [len(part) for part in parts]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(parts)


def ours(config: Config, log: PreparedLog, steps: int) -> Run:
    trainer = SequenceTrainer(config, log, show_progress=False)
    step = StageStep(trainer.model, StageConfig(), trainer.batches.element_spec)
    step.start("train", 0)

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from trainer.batches.dataset(epoch)

    stream = batches()

    def run() -> tuple[float, float, int]:
        began, used, examples = time.perf_counter(), time.process_time(), 0
        for _ in range(steps):
            batch = next(stream)
            loss = step(batch)
            examples += int(tf.reduce_sum(batch["lengths"] - 1))
        float(loss)  # waits for the last step
        return time.perf_counter() - began, time.process_time() - used, examples

    return run


class Peer:
    """A process of `_rectools.py` that trains when it is called."""

    def __init__(self, python: str, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / f"{settings['model']['loss']}.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("_rectools.py")), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.versions = self._answer()
        self.peak_memory = float("nan")

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"RecTools failed:\n{self._process.stderr.read()}")
        return json.loads(line)

    def __call__(self) -> tuple[float, float, int]:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_memory = answer["peak_memory_gib"]
        return answer["seconds"], answer["cpu_seconds"], answer["examples"]

    def close(self) -> None:
        self._process.communicate()


def has_rectools(python: str) -> bool:
    command = [python, "-c", "import rectools.models.nn.transformers"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def peers(
    options: argparse.Namespace, folder: Path, sequences: tuple[np.ndarray, ...]
) -> dict[str, Peer]:
    offsets, items = sequences
    np.savez(folder / "sequences.npz", offsets=offsets, items=items)
    model = {
        "n_blocks": options.layers,
        "n_heads": options.heads,
        "n_factors": options.width,
        "dropout_rate": DROPOUT,
        "session_max_len": options.length,
        "batch_size": options.sequences,
        "n_negatives": options.negatives,
        "epochs": 1,
    }
    common = {
        "data": str(folder / "sequences.npz"),
        "steps": options.steps,
        "threads": options.threads,
    }
    return {
        name: Peer(
            options.peer_python, folder, common | {"model": model | {"loss": loss}}
        )
        for name, loss in PEERS.items()
        if name in options.systems
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("sequences", __doc__, argv, SIZES, QUICK)
    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    log = prepare(configuration(options, next(iter(OURS)), 1))
    sequences = trained_on(log, options.length)
    count = len(sequences[0]) - 1
    events = round(options.sequences * len(sequences[1]) / count)

    def make(name: str) -> Run:
        return ours(configuration(options, name, events), log, options.steps)

    if options.child is not None:
        harness.run_child(options, make(options.child))
        return
    report = harness.Report(options)
    report.head()
    systems = {name: make(name) for name in OURS if name in options.systems}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found: dict[str, Peer] = {}
        if has_rectools(options.peer_python):
            found = peers(options, Path(folder), sequences)
            for peer in found.values():
                stack.callback(peer.close)
        else:
            report.note(f"RecTools is left out: {MISSING}")
        for name, (values, per_cpu) in measured(
            systems | found, options.repeats
        ).items():
            peer = found.get(name)
            memory = (
                harness.memory_of(__file__, options, name)
                if peer is None
                else peer.peak_memory
            )
            report.add(
                name,
                setting(options, name),
                "examples/s",
                values,
                per_cpu_second=statistics.median(per_cpu),
                peak_memory_gib=memory,
            )
    report.note(
        f"{count:,} sequences of {len(sequences[1]) / count:.1f} events on average, at "
        f"most {options.length + 1}; {log.items.trained:,} items; batches of "
        f"{options.sequences} sequences (ours: of {events:,} events)"
    )
    for peer in list(found.values())[:1]:
        report.note(", ".join(f"{name} {text}" for name, text in peer.versions.items()))
    report.write()


def measured(
    systems: Mapping[str, Run], repeats: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Returns examples by second, and by second of CPU.

    Systems take turns, each warmed up once.
    """
    rates: dict[str, tuple[list[float], list[float]]]
    rates = {name: ([], []) for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            seconds, used, examples = run()
            if repeat:
                rates[name][0].append(examples / seconds)
                rates[name][1].append(examples / used)
    return rates


def setting(options: argparse.Namespace, name: str) -> dict[str, Any]:
    sampled = name.endswith(SAMPLED)
    negatives = options.uniform if name in OURS else options.negatives
    return {
        "T": options.length,
        "width": options.width,
        "layers": options.layers,
        "negatives": negatives if sampled else "all",
    }


if __name__ == "__main__":
    main()
