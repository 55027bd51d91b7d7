"""The embedded server under load, against the same export asked in process.

    python benchmarks/serving.py [--items 100000 1000000] [--index exact ivf scann]
        [--clients 64] [--seconds 20] [--swaps 3] [--batch-delay-ms 2] [--quick]

An export is asked by its `retrieve_weighted` signature with single queries, each with
histories and weights of its own: in this process, one after the other; then through
`pipelines/serve.py`, a process of its own, over HTTP connections that are kept open by
clients in a third process. `N clients` ask again as soon as they are answered; `half
the rate` sends half of what they reached, at fixed times: latency counts from the time
a request was due, so waiting for a slow answer is no excuse. `swaps` is N clients
while versions are published and the newest is taken away again; every answer that is
not 200 is an error, and one of 20 is compared with that in process.

Everything is bounded: by `--seconds` per part, which waits for the swaps, at most five
times as long. The machine is shared by server and clients. With `--no-memory` all is
one process, to see that it runs. Vectors are those of benchmarks/fused_query.py.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np

from tfcsmf.files import atomic_directory

SIZES = {
    "items": [100_000],
    "index": ["exact", "ivf", "scann"],
    "users": 10_000,
    "k": 50,
    "target_recall": 0.95,
    "requests": 500,
    "clients": 64,
    "seconds": 20.0,
    "swaps": 3,
    "batch_delay_ms": 0.0,
    "repeats": 1,
}
QUICK = {
    **{"items": [1500], "index": ["ivf"], "users": 200, "k": 10, "requests": 10},
    **{"clients": 4, "seconds": 1.0, "swaps": 1, "repeats": 1},
}
MODEL = "cascade"
QUERIES = 200  # distinct requests
CHECKED = 20  # of so many answers one is compared
PATIENCE = 120.0  # seconds for a server or a version to be ready

Task = dict[str, Any]
Load = dict[str, Any]


# The clients: in a process that does not import TensorFlow.


class Clients:
    """Asks a server from several connections, each with a thread of its own."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bodies = Path(task["bodies"]).read_bytes().split(b"\n")
        self.expected: list[str] = task["expected"]
        self.finished: list[tuple[float, float]] = []  # when, and after how long
        self.errors: Counter[str] = Counter()

    def run(self) -> Load:
        self.start = time.perf_counter() + 0.1
        threads = [
            threading.Thread(target=self._client, args=(number,))
            for number in range(self.task["clients"])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not self.finished:
            raise RuntimeError(f"No request was answered: {dict(self.errors)}.")
        ends, seconds = zip(*sorted(self.finished), strict=True)
        return {"ends": ends, "seconds": seconds, "errors": dict(self.errors)}

    def _client(self, number: int) -> None:
        clients, rate = self.task["clients"], self.task["rate"]
        connection = None
        for turn in range(sys.maxsize):
            due = self.start
            if rate:
                due += (turn * clients + number) / rate
                time.sleep(max(0.0, due - time.perf_counter()))
            elif turn == 0:
                time.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            if self._over(now - self.start):
                break
            place = (turn * clients + number) % len(self.bodies)
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(
                        "127.0.0.1", self.task["port"], timeout=60
                    )
                self._ask(connection, place, due if rate else now, turn)
            except Exception as error:  # counted: nothing may end a client
                self.errors[f"{type(error).__name__}: {error}"] += 1
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _over(self, passed: float) -> bool:
        seconds, file = self.task["seconds"], self.task["until"]
        if passed < seconds:
            return False
        return passed > 5 * seconds or file is None or Path(file).exists()

    def _ask(
        self, connection: http.client.HTTPConnection, place: int, due: float, turn: int
    ) -> None:
        path = f"/v1/models/{MODEL}:predict"
        connection.request("POST", path, self.bodies[place])
        answer = connection.getresponse()
        content = answer.read()
        end = time.perf_counter()
        if answer.status != 200:
            self.errors[f"status {answer.status}"] += 1
            return
        self.finished.append((end - self.start, end - due))
        if turn % CHECKED == 0:
            found = json.loads(content)["predictions"][0]["item_ids"]
            if found[0] != self.expected[place]:
                self.errors["another best item than in process"] += 1


def load(options: argparse.Namespace, task: Task) -> Load:
    """Runs the clients in a process of their own; here with `--no-memory`."""
    if not options.memory:
        return Clients(task).run()
    command = [sys.executable, __file__, *options.argv, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The clients failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# The server.


@contextlib.contextmanager
def serving(options: argparse.Namespace, base: Path) -> Iterator[int]:
    """Serves a folder of versions; yields the port once the model is ready."""
    if not options.memory:
        from tfcsmf.serving import BatchingOptions, ModelOptions, Server, ServerOptions

        delay = options.batch_delay_ms / 1e3
        with Server(
            [ModelOptions(MODEL, base)],
            ServerOptions(
                rest_port=0,
                grpc_port=None,
                poll_seconds=0.1,
                drain_seconds=0.0,
                batching=BatchingOptions(64, delay) if delay else None,
            ),
        ) as server:
            server.wait_until_ready(PATIENCE)
            yield server.rest_port
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, str(harness.ROOT / "pipelines" / "serve.py"), "--quiet"),
        *("--model-base-path", str(base), "--model-name", MODEL),
        *("--rest-port", str(port), "--grpc-port", "-1"),
        *("--batch-delay-ms", str(options.batch_delay_ms)),
    ]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: "ready" in asked(port, "/readyz"), process)
        yield port
    finally:
        process.terminate()
        process.wait()


def asked(port: int, path: str) -> Any:
    """The JSON of a path; empty while there is none."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}{path}", timeout=10
        ) as got:
            return json.load(got)
    except OSError:
        return {}


def wait_for(
    true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None
) -> float:
    """Waits until something holds; returns the seconds it took."""
    began = time.perf_counter()
    while not true():
        passed = time.perf_counter() - began
        if passed > PATIENCE or (process and process.poll() is not None):
            raise RuntimeError(f"The server was not ready after {passed:.0f} s.")
        time.sleep(0.05)
    return time.perf_counter() - began


def state(port: int, version: int) -> str:
    path = f"/v1/models/{MODEL}/versions/{version}"
    statuses = asked(port, path).get("model_version_status", [{}])
    return statuses[0].get("state", "")


def swap(options: argparse.Namespace, base: Path, port: int, done: Path) -> list[float]:
    """Publishes versions, then takes the newest away; returns seconds of each."""
    pause = options.seconds / (options.swaps + 2)
    took = []
    try:
        for number in range(options.swaps):
            time.sleep(pause)
            version = number + 2
            with atomic_directory(base / str(version)) as folder:
                shutil.copytree(base / "1", folder, dirs_exist_ok=True)
            took.append(wait_for(lambda v=version: state(port, v) == "AVAILABLE"))
        time.sleep(pause)
        newest = options.swaps + 1
        shutil.move(base / str(newest), base.parent / "withdrawn")
        took.append(
            wait_for(
                lambda: (
                    state(port, newest - 1) == "AVAILABLE"
                    and state(port, newest) != "AVAILABLE"
                )
            )
        )
        time.sleep(pause)
    finally:
        done.touch()
    return took


# What is measured.


def export_model(setup: Any, kind: str, folder: Path) -> dict[str, Any]:
    """Writes version 1; returns what the index says of itself."""
    from tfcsmf.retrieval.export import export
    from tfcsmf.retrieval.serving_model import ServingModel

    index = setup.index(kind, setup.queries / setup.scales[:, np.newaxis])
    model = ServingModel(
        setup.model,
        setup.log,
        index,
        setup.scales,
        [1.0] * len(setup.scales),
        setup.config.data.history_length,
        setup.config.retrieval.max_k,
    )
    export(model, folder)
    described = index.describe()
    return {name: described[name] for name in described if name != "curve"}


def in_process(
    options: argparse.Namespace, setup: Any, base: Path
) -> tuple[np.ndarray, list[str], bytes]:
    """Seconds per request, the best items, and the same requests as JSON lines."""
    import fused_query

    from tfcsmf.retrieval.exported import ExportedModel

    model = ExportedModel(base)  # kept, or its variables would be gone
    signature = model.signatures["retrieve_weighted"]
    asked_for = setup.request(QUERIES, seed=2)
    asked_for = fused_query.arguments_of(fused_query.FUSED, asked_for)
    rows = [
        {name: value[row : row + 1] for name, value in asked_for.items()}
        for row in range(QUERIES)
    ]
    # Once each before: the answers, and nothing is measured that compiles.
    best = [signature(**row)["item_ids"].numpy()[0, 0].decode() for row in rows]
    seconds = np.zeros(options.requests)
    for number in range(options.requests):
        began = time.perf_counter()
        signature(**rows[number % QUERIES])["item_ids"].numpy()
        seconds[number] = time.perf_counter() - began
    bodies = [json.dumps(body(row)).encode() for row in rows]
    return seconds, best, b"\n".join(bodies)


def body(row: dict[str, Any]) -> dict[str, Any]:
    def plain(value: np.ndarray) -> Any:
        if value.dtype == object:
            return np.char.decode(value.astype("S"), "utf-8").tolist()
        return value.tolist()

    instance = {name: plain(value.numpy()[0:1])[0] for name, value in row.items()}
    return {"signature_name": "retrieve_weighted", "instances": [instance]}


def add(
    report: harness.Report,
    system: str,
    setting: dict[str, Any],
    ends: Sequence[float],
    seconds: Sequence[float],
    **more: float | None,
) -> float:
    """Adds throughput in tenths of the run and latency; returns the throughput."""
    milliseconds = 1e3 * np.asarray(seconds)
    # The first answer only starts the clock.
    parts = np.array_split(np.asarray(ends), min(10, max(1, len(ends) // 2)))
    starts = [ends[0] - seconds[0], *(part[-1] for part in parts[:-1])]
    rates = [
        len(part) / max(part[-1] - start, 1e-9)
        for part, start in zip(parts, starts, strict=True)
    ]
    overall = len(ends) / (ends[-1] - starts[0])
    p50, p99 = np.percentile(milliseconds, [50, 99])
    more = {"overall": overall, "p50_ms": p50, "p99_ms": p99, **more}
    report.add(system, setting, "queries/s", rates, **more)
    return overall


def measure(
    report: harness.Report, options: argparse.Namespace, setup: Any, kind: str
) -> None:
    setting = {"items": setup.log.items.size, "index": kind}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "serving"
        report.note(f"{kind}: {export_model(setup, kind, base)}")
        seconds, best, bodies = in_process(options, setup, base)
        (folder / "bodies").write_bytes(bodies)
        add(report, "in process", setting, np.cumsum(seconds), seconds)
        with serving(options, base) as port:
            task: Task = {
                **{"port": port, "bodies": str(folder / "bodies"), "expected": best},
                **{"seconds": options.seconds, "rate": None, "until": None},
            }

            def run(system: str, extra: Task, **more: float | None) -> float:
                found = load(options, task | extra)
                for error, count in found["errors"].items():
                    report.note(f"{system}: {count} x {error}")
                errors = sum(found["errors"].values())
                ends, taken = found["ends"], found["seconds"]
                return add(report, system, setting, ends, taken, errors=errors, **more)

            many = f"server, {options.clients} clients"
            run("server, 1 client", {"clients": 1})
            for _ in range(options.repeats):
                rate = run(many, {"clients": options.clients})
                half = {"clients": options.clients, "rate": rate / 2}
                run("server, half the rate", half, asked_for=rate / 2)
            with_swaps(report, options, base, port, run)


def with_swaps(
    report: harness.Report,
    options: argparse.Namespace,
    base: Path,
    port: int,
    run: Callable[..., float],
) -> None:
    done = base.parent / "done"
    took: list[float] = []
    thread = threading.Thread(
        target=lambda: took.extend(swap(options, base, port, done))
    )
    thread.start()
    extra = {"clients": options.clients, "until": str(done)}
    run(f"server, {options.clients} clients, {options.swaps} swaps", extra)
    thread.join()
    if len(took) != options.swaps + 1:
        raise RuntimeError("A version was not taken up; see above.")
    shown = ", ".join(f"{seconds:.1f}" for seconds in took)
    report.note(
        f"until the {options.swaps} versions and the rollback served: {shown} s"
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("serving", __doc__, argv, SIZES, QUICK)
    if options.child:
        print(json.dumps(Clients(json.loads(options.child)).run()))
        return
    import fused_query

    report = harness.Report(options)
    report.head()
    for items in options.items:
        setup = fused_query.Setup(
            argparse.Namespace(
                users=options.users,
                items=items,
                k=options.k,
                target_recall=options.target_recall,
            )
        )
        for kind in options.index:
            if kind == "scann" and importlib.util.find_spec("scann") is None:
                report.note("scann is left out: it is not installed")
                continue
            measure(report, options, setup, kind)
    report.write()


if __name__ == "__main__":
    main()
