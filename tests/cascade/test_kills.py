"""Real processes, killed by SIGKILL in every phase, end like one that was not.

`kill_runs.py` makes the runs; here their ends are compared.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.sharded.folder import TOGETHER, PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.simulator import simulate

SCRIPT = Path(__file__).with_name("kill_runs.py")
# Small, but with all that has a state: dropout, drawn negatives, values kept from
# before pruning, pruning and recovery in both stages.
CONFIG = {
    "towers": {
        "dimension": 8,
        "embedding_dimension": 4,
        "feature_dimension": 4,
        "hidden_units": [8],
        "dropout": 0.1,
        "history_dropout": 0.3,
        "normalize": True,
    },
    "loss": {
        "temperature": 0.2,
        "whole_catalogue": 0,
        "uniform_negatives": 16,
        "hard_negatives": 8,
        "margin": {"share": 0.5},
    },
    "cascade": {
        "objectives": ["exposure", "click"],
        "reserve": True,
        "stage": {"epochs": 3, "recovery_epochs": 2, "batch_size": 32, "freed": "keep"},
        "checkpoint_every": 4,
    },
    "evaluation": {"ks": [5], "validation_k": 5, "bootstrap_samples": 20},
    "retrieval": {"k": 20},
}
# All that may differ: how long it took, and the number under which it is exported
# (a run killed between its export and its report exports once more).
TIMINGS = {"seconds", "examples_per_second"}
MAY_DIFFER = TIMINGS | {"serving_version"}
PHASES = {
    *("checkpoint", "training", "evaluation", "pruning", "recovery", "freezing"),
    *("later stage", "assessment", "export", "report", "finish"),
}


def _runs(folder, seed, random_kills, shards=0):
    """Returns what `kill_runs.py` printed; with shards they train from a folder."""
    config = folder / "config.yaml"
    # Without features, whose tables would only take longer to trace.
    world = SimulatorConfig(users=40, items=30, exposures_per_user=20)
    events = simulate(world, CONFIG["cascade"]["objectives"], 0).events
    events.write_parquet(folder / "events.parquet")
    data = {"events": str(folder / "events.parquet")}
    if shards:
        prepared = str(folder / "prepared")
        prepare_sharded(Config.from_dict(CONFIG | {"data": data}), prepared, shards)
        data["prepared"] = prepared
    config.write_text(yaml.safe_dump(CONFIG | {"data": data}))
    command = [sys.executable, str(SCRIPT), str(config), str(folder)]
    done = subprocess.run(
        [*command, str(seed), str(random_kills)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _without(tree, names):
    if isinstance(tree, dict):
        return {
            key: _without(value, names)
            for key, value in tree.items()
            if key not in names
        }
    if isinstance(tree, list):
        return [_without(value, names) for value in tree]
    return tree


def _exported(version):
    """Returns the exported tensors by name, catalogue vectors included."""
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    names = reader.get_variable_to_shape_map()
    values = {
        name: np.asarray(reader.get_tensor(name))
        for name in names
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }
    return {
        # Strings are objects, whose bytes are addresses.
        name: value.tolist() if value.dtype == object else value.tobytes()
        for name, value in values.items()
    }


def _check_equal(output, reference):
    """Checks that two finished runs ended the same, bit by bit."""
    ours, theirs = (
        CheckpointStore(Path(folder) / "checkpoints").latest()
        for folder in (output, reference)
    )
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, value in theirs.arrays.items():
        assert ours.arrays[name].dtype == value.dtype
        assert ours.arrays[name].tobytes() == value.tobytes(), name
    assert _without(ours.state, TIMINGS) == _without(theirs.state, TIMINGS)
    ours, theirs = (
        json.loads((Path(folder) / "report" / "metrics.json").read_text())
        for folder in (output, reference)
    )
    assert _without(ours, MAY_DIFFER) == _without(theirs, MAY_DIFFER)
    expected = _exported(Path(reference) / "serving" / "1")
    assert any("candidate" in name for name in expected)
    versions = [path for path in (Path(output) / "serving").glob("[0-9]*")]
    assert versions
    for version in versions:
        assert _exported(version) == expected


def _steps(output):
    lines = Path(f"{output}.trace").read_text().splitlines()
    return sum(json.loads(line)[0] == "step" for line in lines)


def _check(done):
    assert done["reference"]["status"] == 0
    for name in ("exact", "random"):
        # No kill costs more than the steps since the last intact checkpoint but one.
        most = 3 * CONFIG["cascade"]["checkpoint_every"] * len(done[name]["kills"])
        steps = _steps(done[name]["output"])
        assert steps <= _steps(done["reference"]["output"]) + most
    for name in ("exact", "random"):
        run = done[name]
        log = Path(run["output"] + ".log").read_text()
        assert run["status"] == 0, log[-3000:]
        _check_equal(run["output"], done["reference"]["output"])
        checkpoints = Path(run["output"]) / "checkpoints"
        assert len([p for p in checkpoints.iterdir() if p.is_dir()]) == 2
    kills = done["exact"]["kills"]
    for kill in kills:
        expected = 2 if kill["what"] == "full disk" else -signal.SIGKILL
        assert kill["status"] == expected, kill
    assert {kill["what"] for kill in kills} == PHASES | {"full disk"}
    printed = Path(done["exact"]["output"] + ".log").read_text().splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    assert len(errors) == 2
    assert all("The disk is full while writing" in line for line in errors)


@pytest.mark.timeout(600)  # a minute on two idle cores
def test_killed_runs_end_like_one_that_was_not(tmp_path):
    done = _runs(tmp_path, seed=0, random_kills=2)
    _check(done)
    kills = done["exact"]["kills"] + done["random"]["kills"]
    assert sum(kill["status"] == -signal.SIGKILL for kill in kills) == 13


@pytest.mark.slow  # four minutes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 5))
def test_other_moments(tmp_path, seed):
    _check(_runs(tmp_path, seed, random_kills=8))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_a_prepared_folder(tmp_path):
    _check(_runs(tmp_path, seed=5, random_kills=4, shards=24))
    # More than one pool, so that some kills are in later ones.
    assert len(PreparedFolder.open(tmp_path / "prepared").shards) > TOGETHER
