"""What sharing a step costs: two workers on loopback against one process.

    python benchmarks/workers.py [--batch 512] [--steps 20] [--quick]

Steps of the first stage on a simulated log, with the same global batches. Workers share
the cores of one machine here, so this is the price of the exchange and of what every
worker does, and says nothing of machines of their own. CPU seconds are those of all
processes; they are what to look at where others use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.cascade.workers import open_workers
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepare import prepare

SIZES = {"batch": 512, "steps": 20, "log_users": 4000, "log_items": 5000}
QUICK = {"batch": 16, "steps": 2, "log_users": 60, "log_items": 40, "repeats": 1}


def steps(options: argparse.Namespace) -> None:
    """Trains in this process; prints seconds per step, one line of JSON per repeat."""
    workers = open_workers("multi_worker" if "TF_CONFIG" in os.environ else "none")
    config = Config.from_dict(
        {"simulator": {"users": options.log_users, "items": options.log_items}}
    )
    log = prepare(config)
    settings = BatchSettings(
        options.batch, 0, 0, config.data.history_length, 0, whole_catalogue=20_000
    )
    batches = StageBatches(log, log.objectives[0], settings)
    model = build_model(config, log)
    step = StageStep(model, config.cascade.stage, batches.element_spec, workers)
    step.start("train", 0)
    stream = iter(batches.dataset(1.0, 0, 0, 10**9))
    for _ in range(3):
        float(step(next(stream)))
    values = []
    for _ in range(options.repeats):
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            loss = step(next(stream))
        float(loss)
        values.append([time.perf_counter() - began, time.process_time() - cpu])
    if workers is not None:
        workers.finish()
    print(json.dumps(values))


def processes(count: int, argv: Sequence[str]) -> list[list[list[float]]]:
    """Runs `steps` in so many workers; one is a process of its own."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    running = []
    for number in range(count):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        if count > 1:
            task = {"type": "worker", "index": number}
            place = {"cluster": {"worker": addresses}, "task": task}
            environment["TF_CONFIG"] = json.dumps(place)
        command = [sys.executable, __file__, *argv, "--child", str(number)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        )
    outputs = [one.communicate()[0] for one in running]
    if any(one.returncode for one in running):
        raise RuntimeError("A worker failed; see above.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("workers", __doc__, argv, SIZES, QUICK)
    if options.child:
        steps(options)
        return
    report = harness.Report(options)
    report.head()
    for name, count in (("one process", 1), ("two workers on loopback", 2)):
        done = processes(count, options.argv)
        report.add(
            name,
            {"batch": options.batch},
            "ms/step",
            [1e3 * values[0] / options.steps for values in done[0]],
            cpu_ms_per_step=1e3
            * sum(values[1] for worker in done for values in worker)
            / (options.repeats * options.steps),
        )
    report.write()


if __name__ == "__main__":
    main()
