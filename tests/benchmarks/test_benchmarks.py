import importlib.util
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if not path.stem.startswith("_") and not path.stem.endswith("_figures")
)
# Smaller still than --quick, without processes that import TensorFlow once more.
SMALLER = {
    "training": [
        *("--optimizer", "adagrad", "--batch", "16", "--rows", "500"),
        *("--steps", "1", "--log-users", "60"),
    ],
    "denominators": ["--queries", "10"],
    "evaluation": ["--no-memory", "--queries", "40"],
    "fused_query": [
        *("--no-memory", "--batch", "1", "--items", "1500", "--requests", "2"),
    ],
    "index": [
        *("--no-memory", "--requests", "3", "--data", "clustered"),
        *("--systems", "exact", "ivf", "TFRS BruteForce"),  # not ScaNN: as above
    ],
    "negatives": ["--no-memory", "--steps", "1", "--repeats", "1"],
    "preparation": ["--rows", "5000"],
    "sequences": [
        *("--no-memory", "--systems", "tfcsmf, SASRec", "tfcsmf, SASRec, sampled"),
        *("--steps", "1"),
    ],
    # One process; its server and clients are tested in processes of their own by hand.
    "serving": ["--no-memory", "--requests", "3", "--seconds", "0.5"],
    "stored_input": ["--users", "40", "--items", "30", "--steps", "1"],
    "scale": [
        # Objectives are trained and exported: see the slow test.
        *("--no-memory", "--parts", "catalogue", "batch", "--items", "1500"),
        *("--scann-up-to", "0", "--batch", "16", "--requests", "3"),
    ],
    "workers": [],
    "parameter_servers": [],
}
SLOW = {
    "sequences",
    "stored_input",
    "workers",
    "parameter_servers",
    "negatives",
    "denominators",
}  # up to half a minute each


@pytest.fixture
def load(monkeypatch):
    """Returns a function: name of a script -> its module."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def make(name):
        spec = importlib.util.spec_from_file_location(
            f"benchmark_{name}", FOLDER / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up.
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return make


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SCRIPTS],
)
def test_every_script_runs_and_writes_positive_figures(name, load, tmp_path):
    path = tmp_path / "result.json"
    argv = ["--quick", "--repeats", "1", *SMALLER[name], "--json", str(path)]
    load(name).main(argv)
    tree = json.loads(path.read_text())
    assert tree["benchmark"] == name
    assert tree["command"].startswith(f"python benchmarks/{name}.py --quick")
    assert tree["machine"]["cores"] >= 1 and tree["versions"]["tfcsmf"]
    assert len(tree["results"]) >= 2
    for line in tree["results"]:
        assert 0 < line["lowest"] <= line["median"] <= line["highest"], line
        assert line.get("peak_memory_gib", 0.1) > 0.01
    if name == "preparation":  # its processes are cheap, so memory is measured here
        assert all("peak_memory_gib" in line for line in tree["results"])


def test_the_peer_of_sequences_answers_from_an_interpreter_of_its_own(load, tmp_path):
    """One that says it trained 10 examples in half a second, whatever it is asked."""
    python = tmp_path / "python"
    answer = {"seconds": 0.5, "cpu_seconds": 0.25, "examples": 10}
    answer = json.dumps(answer | {"peak_memory_gib": 0.25})
    python.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -c ] && exit 0\n'
        f"cp $2 {tmp_path}\n"
        'echo \'{"rectools": "1.2"}\'\n'
        f"while read _; do echo '{answer}'; done\n"
    )
    python.chmod(0o755)
    path = tmp_path / "result.json"
    name = "RecTools, SASRec, sampled"
    argv = ["--quick", "--systems", name, "--peer-python", str(python)]
    load("sequences").main([*argv, "--json", str(path)])
    tree = json.loads(path.read_text())
    (line,) = tree["results"]
    assert (line["system"], line["median"], line["per_cpu_second"]) == (name, 20, 40)
    assert line["peak_memory_gib"] == 0.25
    assert any("rectools 1.2" in note for note in tree["notes"])
    settings = json.loads((tmp_path / "sampled_softmax.json").read_text())
    assert settings["steps"] == 2 and settings["model"]["session_max_len"] == 8


def test_repeats_take_turns_after_one_call_each(load):
    called = []
    systems = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = load("_harness").interleave(systems, 2)
    assert called == list("ababab")
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_clients_count_every_failure_and_keep_to_a_rate(load, tmp_path):
    """A server that refuses one of four requests, and answers the others."""
    served, connections = [], set()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self):
            served.append(self.rfile.read(int(self.headers["content-length"])))
            connections.add(self.client_address)
            status = 503 if len(served) % 4 == 0 else 200
            body = b'{"predictions": [{"item_ids": ["i1"]}]}'
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "bodies").write_bytes(b"a\nb")
    task = {
        **{"port": server.server_port, "bodies": str(tmp_path / "bodies")},
        **{"expected": ["i1", "another"], "clients": 2, "seconds": 1.0},
        **{"rate": 80.0, "until": None},
    }
    try:
        found = load("serving").Clients(task).run()
    finally:
        server.shutdown()
        server.server_close()
    assert 70 <= len(served) <= 82 and {*served} == {b"a", b"b"}
    assert found["errors"]["status 503"] == len(served) // 4
    assert len(found["ends"]) == len(served) - len(served) // 4
    # The second body is answered with another item: client 1, turns 0 and 20.
    assert found["errors"].get("another best item than in process", 0) >= 1
    assert len(connections) == 2  # kept open


def test_given_options_win_over_quick_ones(load):
    parse = load("_harness").parse
    sizes, quick = {"rows": [5, 6], "share": 0.5}, {"rows": [1]}
    options = parse("x", "", ["--quick", "--share", "0.25"], sizes, quick)
    assert (options.rows, options.share, options.repeats) == ([1], 0.25, 2)
    assert options.json.endswith("x-quick.json")
    options = parse("x", "", ["--rows", "7", "8", "9", "--no-memory"], sizes, quick)
    assert (options.rows, options.memory, options.quick) == ([7, 8, 9], False, False)


def test_peak_memory_grows_with_what_is_held(load):
    harness = load("_harness")
    before = harness.peak_memory()
    held = np.ones(2**28, np.uint8)
    after = harness.peak_memory()
    assert held.nbytes == 2**28
    assert before > 0 and after >= before


@pytest.mark.slow
def test_cascades_of_every_length_leave_frozen_scores_alone(load, tmp_path):
    path = tmp_path / "scale.json"
    argv = ["--quick", "--parts", "objectives", "--json", str(path)]
    load("scale").main(argv)
    lines = json.loads(path.read_text())["results"]
    whole = [line for line in lines if line["system"] == "train all"]
    assert [line["setting"]["objectives"] for line in whole] == [1, 2]
    assert [line["frozen_max_abs_change"] for line in whole] == [0.0, 0.0]
    # The same network, whatever the number of objectives.
    assert whole[0]["parameters"] == whole[1]["parameters"]
    assert whole[0]["dimension"] == whole[1]["dimension"]


def test_figures_show_the_parts_that_were_measured(load, tmp_path):
    lines = [
        {
            "system": system,
            "setting": {"optimizer": "adam", "batch": batch},
            "median": 1e6 / batch,
        }
        for system in ("tfcsmf, stage 1", "stock TFRS")
        for batch in (512, 1024)
    ]
    source = tmp_path / "scale.json"
    source.write_text(json.dumps({"results": lines}))
    figures = load("scale_figures")
    argv = [str(source), "--folder", str(tmp_path)]
    figures.main(argv)
    (figure,) = tmp_path.glob("*.svg")
    assert figure.name == "scale_batch.svg"
    first = figure.read_bytes()
    figures.main(argv)
    assert figure.read_bytes() == first
    points = figures.Results([source]).points("stock TFRS", "batch", optimizer="adam")
    assert points == [(512, 1e6 / 512), (1024, 1e6 / 1024)]


def test_curves_over_depth_are_those_of_the_report(load, tmp_path):
    def entry(mean):
        values = {"mean": mean, "ci95": [mean - 0.1, mean + 0.2], "seeds": [mean]}
        return {"users": 3, "metrics": {"ndcg@10": values, "hit_rate@10": values}}

    variants = {"heterrec-8": 0.5, "heterrec-1": 0.25, "merged-2": 0.125, "sasrec": 0.9}
    content = {
        "objectives": ["review"],
        "on": "validation",
        "systems": {name: {"training_seconds": 7.0} for name in variants},
        "protocols": {
            "standard": {"review": {name: entry(v) for name, v in variants.items()}}
        },
    }
    report = tmp_path / "comparison.json"
    report.write_text(json.dumps(content))
    figures = load("depth_figures")
    found = figures.curves([report])
    assert found == {
        "validation ndcg@10": {
            "heterrec": [(1, 0.25, 0.15, 0.45), (8, 0.5, 0.4, 0.7)],
            "merged": [(2, 0.125, pytest.approx(0.025), 0.325)],
        },
        "seconds of training": {
            "heterrec": [(1, 7.0, 7.0, 7.0), (8, 7.0, 7.0, 7.0)],
            "merged": [(2, 7.0, 7.0, 7.0)],
        },
    }
    assert list(figures.curves([report], seconds=False)) == ["validation ndcg@10"]
    figures.main([str(report), "--output", str(tmp_path / "depth.svg")])
    assert "heterrec" in (tmp_path / "depth.svg").read_text()
