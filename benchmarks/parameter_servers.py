"""Where the memory of a large table is: one process, and a chief with two servers.

    python benchmarks/parameter_servers.py [--rows 2000000] [--quick]

Trains a small simulated cascade with a user table of `--rows` rows, nearly all of them
never met: two stages with pruning, recovery and checkpoints, without the evaluation and
export at the end. What is reported is the peak of each process, imports included, and
the seconds that training took. On loopback copying tables between processes costs the
cores that train.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.parameter_servers import open_servers
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare

SERVERS = 2
SIZES = {"rows": 2_000_000, "shard_rows": 1 << 18, "log_users": 300, "log_items": 200}
QUICK = {"rows": 200, "shard_rows": 64, "log_users": 60, "log_items": 40}


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Trains in this process, or holds shards for the one that does."""
    sharded = "TF_CONFIG" in os.environ
    servers = open_servers("parameter_server" if sharded else "none")
    if servers is not None and not servers.is_chief:
        servers.serve()
        return {"peak": harness.peak_memory()}
    config = Config.from_dict(
        {
            "simulator": {
                "users": options.log_users,
                "items": options.log_items,
                "exposures_per_user": 20,
            },
            "towers": {"shard_rows": options.shard_rows if sharded else 1 << 40},
            "cascade": {
                "objectives": ["exposure", "click"],
                "stage": {"epochs": 2, "recovery_epochs": 1},
            },
        }
    )
    log = prepare(config)
    # Rows that rare users would share; there are none.
    spare = np.arange(options.rows, dtype=np.int32)
    log = dataclasses.replace(log, users=dataclasses.replace(log.users, buckets=spare))
    began = time.perf_counter()
    model = build_model(config, log, servers.devices if servers is not None else ())
    with tempfile.TemporaryDirectory() as folder:
        CascadeTrainer(config, log, model, folder, show_progress=False).train()
    return {
        "peak": harness.peak_memory(),
        "seconds": time.perf_counter() - began,
        "table": 4 * log.users.num_rows * config.towers.embedding_dimension,
    }


def places(count: int) -> list[dict[str, Any] | None]:
    """Returns the `TF_CONFIG` of a chief and so many servers, chief first."""
    if not count:
        return [None]
    sockets = [socket.socket() for _ in range(count + 1)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    tasks = [("chief", 0), *(("ps", index) for index in range(count))]
    cluster = {"chief": addresses[:1], "ps": addresses[1:]}
    return [
        {"cluster": cluster, "task": {"type": kind, "index": index}}
        for kind, index in tasks
    ]


def processes(count: int, argv: Sequence[str]) -> list[dict[str, Any]]:
    """Runs `train` with so many servers; returns what each process printed."""
    running = []
    for place in places(count):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        if place is not None:
            environment["TF_CONFIG"] = json.dumps(place)
        command = [sys.executable, __file__, *argv, "--child", "1"]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        )
    outputs = [one.communicate()[0] for one in running]
    if any(one.returncode for one in running):
        raise RuntimeError("A process failed; see above.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("parameter_servers", __doc__, argv, SIZES, QUICK)
    if options.child:
        print(json.dumps(train(options)))
        return
    report = harness.Report(options)
    report.head()
    for count in (0, SERVERS):
        done = processes(count, options.argv)
        names = ["one process"] if not count else ["chief", *["server"] * count]
        for name, line in zip(names, done, strict=True):
            more = {k: v for k, v in line.items() if k == "seconds"}
            report.add(name, {"rows": options.rows}, "GiB", [line["peak"]], **more)
    report.note(
        f"The weights of the table are {done[0]['table'] / harness.GIB:.2f} GiB."
    )
    report.write()


if __name__ == "__main__":
    main()
