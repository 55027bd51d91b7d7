"""Runs of the main command by one process and by two workers on loopback.

A process of its own: `python worker_runs.py CONFIG FOLDER RUN...`. It imports
everything once and forks before TensorFlow's runtime starts. Each RUN is a name:

- `one`: one process, into FOLDER/one;
- `two`: two workers, into FOLDER/two, from FOLDER/prepared if there is one; the one
  that is not the chief is told FOLDER/other, and FOLDER/temporary is where it may put
  temporary files;
- `killed`: as `two`, but both are killed once the chief has written four checkpoints,
  and started again;
- `lost`: as `two`, but the other one is killed; then both are started again without
  `--resume`, which the chief refuses.

Runs go on side by side. Prints the exit statuses by run as one line of JSON.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "pipelines")]


def ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers


def fork(
    config,
    output,
    log,
    place=None,
    temporary=None,
    options=(),
    distribution="multi_worker",
):
    """Starts a run in a forked child; returns its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faulthandler.dump_traceback_later(1500, exit=True)
        arguments = ["--config", config, "--output", output, "--quiet", "--debug"]
        if place is not None:
            os.environ["TF_CONFIG"] = json.dumps(place)
            arguments += ["--distribution", distribution]
            prepared = Path(output).with_name("prepared")
            arguments += ["--prepared", str(prepared)] * prepared.is_dir()
        if temporary is not None:
            tempfile.tempdir = temporary
        import run_cascade

        from tfcsmf import cli
        from tfcsmf.cascade import checkpoints

        # Every checkpoint that may be written is: what is tested is not the pace.
        checkpoints.SavePace.affordable = lambda self: True
        status = cli.run(run_cascade.main, [*arguments, *options])
    finally:
        os._exit(status)


def wait(process):
    """Returns the exit status of a child, negative if a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class Pair:
    """Two workers of a run."""

    def __init__(self, config, folder, name):
        self.config, self.name = config, name
        self.folder = folder
        self.output = folder / name
        self.temporary = folder / f"{name}.temporary"
        self.temporary.mkdir()

    def start(self, *options):
        addresses = [f"localhost:{port}" for port in ports(2)]
        self.processes = []
        for number in range(2):
            place = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": number},
            }
            output = self.folder / f"{self.name}.other" if number else self.output
            log = f"{self.output}.{number}.log"
            temporary = str(self.temporary) if number else None
            process = fork(self.config, str(output), log, place, temporary, options)
            self.processes.append(process)

    def wait(self):
        return [wait(process) for process in self.processes]

    def wait_for_checkpoint(self, number):
        checkpoint = self.output / "checkpoints" / f"{number:08d}"
        while not checkpoint.exists() and not self.is_over():
            time.sleep(0.01)

    def is_over(self):
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return any(os.waitid(os.P_PID, p, flags) is not None for p in self.processes)


def main(config, folder, *names):
    import run_cascade  # noqa: F401

    import tfcsmf.cascade.run  # noqa: F401

    folder, done = Path(folder), {}
    alone = None
    if "one" in names:
        alone = fork(config, str(folder / "one"), str(folder / "one.log"))
    pairs = {name: Pair(config, folder, name) for name in names if name != "one"}
    for name, pair in pairs.items():
        pair.start()
        if name in ("killed", "lost"):
            pair.wait_for_checkpoint(4)
            for process in pair.processes[int(name == "lost") :]:
                os.kill(process, signal.SIGKILL)
        done[name] = pair.wait()
        if name == "killed":
            pair.start("--resume")
            done["resumed"] = pair.wait()
        if name == "lost":
            pair.start()
            done["refused"] = pair.wait()
    if alone is not None:
        done["one"] = wait(alone)
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
