import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")
)
# Smaller still than --quick, without processes that import TensorFlow once more.
SMALLER = {
    "training": [
        *("--optimizer", "adagrad", "--batch", "16", "--rows", "500"),
        *("--steps", "1", "--log-users", "60"),
    ],
    "evaluation": ["--no-memory", "--queries", "40"],
    "fused_query": [
        *("--no-memory", "--batch", "1", "--items", "1500", "--requests", "2"),
        # Not ScaNN: searching one of several indexes of a process has ended in a
        # segmentation fault twice. `make bench` covers it.
        *("--index", "exact"),
    ],
    "preparation": ["--rows", "5000"],
}


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


@pytest.mark.parametrize("name", SCRIPTS)
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


def test_repeats_take_turns_after_one_call_each(load):
    called = []
    systems = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = load("_harness").interleave(systems, 2)
    assert called == list("ababab")
    assert [len(values) for values in seconds.values()] == [2, 2]


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
