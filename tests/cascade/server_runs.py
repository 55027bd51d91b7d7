"""Runs of the main command by one process and by a chief with two parameter servers.

A process of its own: `python server_runs.py CONFIG FOLDER`. It imports everything once
and forks before TensorFlow's runtime starts. Runs, one after the other:

- `one`: one process, tables as a whole, into FOLDER/one;
- `sharded`: a chief and two parameter servers on loopback, into FOLDER/sharded;
- `order`: a chief and one server, see `check_order`;
- `lost`: the same into FOLDER/lost, but the second server is killed once the chief has
  written four checkpoints; then the chief and one server go on with `--resume`.

Prints the exit statuses by run as one line of JSON: of the chief, then the servers.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from worker_runs import fork, ports, wait

# Several shards of both tables, the last ones shorter.
SHARDS = ("--set", "towers.shard_rows=8")


def start(config, folder, name, servers, *options):
    """Returns the process ids of a chief and its parameter servers."""
    addresses = [f"localhost:{port}" for port in ports(servers + 1)]
    cluster = {"chief": addresses[:1], "ps": addresses[1:]}
    processes = []
    for kind, index in [("chief", 0), *(("ps", index) for index in range(servers))]:
        place = {"cluster": cluster, "task": {"type": kind, "index": index}}
        log = str(folder / f"{name}.{kind}{index}.log")
        options = (*options, *SHARDS) if kind == "chief" else ()
        output = str(folder / name)
        processes.append(
            fork(config, output, log, place, None, options, "parameter_server")
        )
    return processes


def check_order(place):
    """Replaces a shard and looks it up in turn; returns how often too early."""
    os.environ["TF_CONFIG"] = json.dumps(place)
    import tensorflow as tf

    from tfcsmf.cascade.parameter_servers import open_servers
    from tfcsmf.towers.shards import device_of, take_rows

    servers = open_servers("parameter_server")
    if not servers.is_chief:
        servers.serve()
        return 0
    with tf.device(servers.devices[0]):
        shard = tf.Variable(tf.zeros([300_000, 64]))
        values = [tf.fill(shard.shape, float(number)) for number in range(4)]
    look = tf.function(lambda rows: take_rows([shard], rows))
    look(tf.constant([0, 1]))
    early = 0
    for number in range(40):
        with device_of(shard):
            shard.assign(values[number % 4] * 1.0)
        found = look(tf.constant([0, 299_999])).numpy()
        early += bool((found != number % 4).any())
    return early


def order():
    """Returns the exit statuses of a chief and a server that run `check_order`."""
    addresses = [f"localhost:{port}" for port in ports(2)]
    cluster = {"chief": addresses[:1], "ps": addresses[1:]}
    processes = []
    for kind in ("chief", "ps"):
        processes.append(os.fork())
        if not processes[-1]:
            status = 100
            try:
                task = {"type": kind, "index": 0}
                status = check_order({"cluster": cluster, "task": task})
            finally:
                os._exit(status)
    return [wait(process) for process in processes]


def main(config, folder):
    import run_cascade  # noqa: F401

    import tfcsmf.cascade.run  # noqa: F401

    folder, done = Path(folder), {"order": order()}
    done["one"] = wait(fork(config, str(folder / "one"), str(folder / "one.log")))
    done["sharded"] = [wait(p) for p in start(config, folder, "sharded", 2)]
    processes = start(config, folder, "lost", 2)
    checkpoint = folder / "lost" / "checkpoints" / f"{4:08d}"
    while (
        not checkpoint.exists()
        and os.waitid(os.P_PID, processes[0], os.WEXITED | os.WNOHANG | os.WNOWAIT)
        is None
    ):
        time.sleep(0.01)
    os.kill(processes[2], signal.SIGKILL)
    done["lost"] = [wait(p) for p in processes]
    done["resumed"] = [wait(p) for p in start(config, folder, "lost", 1, "--resume")]
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
