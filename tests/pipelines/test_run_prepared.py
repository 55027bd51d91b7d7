"""The main command on a prepared folder ends as on the log itself."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import run_cascade
import sweep

from tfcsmf import cli
from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.cascade.run_data import RunData
from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.simulator import simulate
from tfcsmf.errors import ConfigError

OBJECTIVES = ["exposure", "click"]
SMALL = {
    "towers": {
        "dimension": 8,
        "embedding_dimension": 8,
        "feature_dimension": 4,
        "hidden_units": [16],
    },
    "loss": {"uniform_negatives": 16, "whole_catalogue": 0},
    "cascade": {
        "reserve": True,
        "stage": {"epochs": 2, "recovery_epochs": 1, "batch_size": 32},
    },
    "evaluation": {"ks": [5, 10], "validation_k": 5, "bootstrap_samples": 50},
    "retrieval": {"k": 20},
}


def write_log(folder, users, items):
    world = SimulatorConfig(users=users, items=items, exposures_per_user=20)
    made = simulate(world, OBJECTIVES, 0)
    # One moment each, which leaves one order of a user's events.
    events = made.events.sort("timestamp", maintain_order=True)
    events = events.with_columns(timestamp=pl.int_range(pl.len()))
    paths = {name: str(folder / f"{name}.parquet") for name in DATA}
    for name, table in zip(DATA, (events, made.items, made.users), strict=True):
        table.write_parquet(paths[name])
    # A folder does not know how events that share a row followed each other.
    data = {**paths, "rows_per_user": 1000}
    return {"data": data, "cascade": {"objectives": OBJECTIVES}}


DATA = ("events", "items", "users")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The tree of a log, and the folder it was prepared into."""
    path = tmp_path_factory.mktemp("log")
    tree = write_log(path, users=60, items=40)
    prepare_sharded(Config.from_dict(tree), path / "prepared", 3)
    return tree, str(path / "prepared")


def test_what_is_left_beside_the_checkpoints_says_the_same_log(log):
    tree, folder = log
    ours = RunData.read(Config.from_dict(tree, [f"data.prepared={folder}"]), None)
    theirs = RunData.read(Config.from_dict(tree), None)
    schema = ours.schema()
    assert len(schema.pop("prepared")) == 16
    assert schema == theirs.schema()
    summary = ours.log.summary | {"prepared": None}
    assert summary == theirs.log.summary | {"prepared": None}
    with pytest.raises(ConfigError, match="--events"):
        RunData.read(Config.from_dict(tree, [f"data.prepared={folder}"]), schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "data.split=random"], "data.split: 'auto' prepared, 'random' now"),
        (["--objectives", "click"], "cascade.objectives"),
        (["--events", "other.parquet"], "other.parquet"),
        (["--set", "loss.negatives.sampler=cross_batch"], "--events"),
        (["--prepared", "nowhere"], "prepared.json"),
    ],
)
def test_what_does_not_fit_the_folder_is_one_message(
    log, tmp_path, capsys, options, message
):
    output = tmp_path / "out"
    arguments = ["--prepared", log[1], "--output", str(output), "--quiet"]
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(SMALL))
    arguments += ["--config", str(small), *options]
    assert cli.run(run_cascade.main, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and message in error
    assert not output.exists()


def run(tree, output, tmp_path, *options):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    arguments = ["--config", str(path), "--output", str(output), "--quiet", *options]
    assert cli.run(run_cascade.main, [*arguments, "--debug"]) == 0
    metrics = json.loads((output / "report" / "metrics.json").read_text())
    return metrics, CheckpointStore(output / "checkpoints").latest().arrays


def joined(tree):
    return SMALL | tree | {"cascade": SMALL["cascade"] | tree["cascade"]}


@pytest.mark.slow
def test_a_small_log_ends_bit_by_bit_as_from_memory(log, tmp_path):
    tree, folder = log
    theirs, wanted = run(joined(tree), tmp_path / "memory", tmp_path)
    # The folder knows its data.
    ours, found = run(SMALL, tmp_path / "disk", tmp_path, "--prepared", folder)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name
    for key in ("protocols", "baselines", "scales", "model", "index"):
        assert ours[key] == theirs[key]
    written = yaml.safe_load((tmp_path / "disk" / "config.yaml").read_text())
    assert written["data"]["prepared"] == folder
    assert written["data"]["events"] == tree["data"]["events"]
    # The run's own configuration names the folder; what was finished stays.
    own = ["--config", str(tmp_path / "disk" / "config.yaml"), "--resume"]
    own += ["--output", str(tmp_path / "disk"), "--quiet"]
    assert cli.run(run_cascade.main, own) == 0
    # To append an objective the log itself is read.
    extended = tmp_path / "extended"
    arguments = ["--extend", str(tmp_path / "disk"), "--output", str(extended)]
    arguments += ["--objectives", "exposure,click,again", "--quiet", "--debug"]
    events = pl.read_parquet(tree["data"]["events"])
    again = events.filter(pl.col("event") == "click")
    again = again.with_columns(event=pl.lit("again"), timestamp="timestamp")
    events = pl.concat([events, again])
    events.write_parquet(tmp_path / "more.parquet")
    arguments += ["--events", str(tmp_path / "more.parquet")]
    assert cli.run(run_cascade.main, arguments) == 0
    metrics = json.loads((extended / "report" / "metrics.json").read_text())
    assert metrics["frozen_max_abs_change"] == 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_pools_are_as_good_as_memory(tmp_path):
    """Other batches, but no other quality; references do not see the difference."""
    tree = write_log(tmp_path, users=1500, items=200)
    prepare_sharded(Config.from_dict(tree), tmp_path / "prepared", 40)
    more = {"stage": {"epochs": 15, "recovery_epochs": 2, "batch_size": 128}}
    tree = joined(tree) | {"loss": SMALL["loss"] | {"uniform_negatives": 64}}
    tree = tree | {"cascade": tree["cascade"] | more}
    theirs, _ = run(tree, tmp_path / "memory", tmp_path)
    folder = str(tmp_path / "prepared")
    ours, _ = run(tree, tmp_path / "disk", tmp_path, "--prepared", folder)
    assert ours["baselines"] == theirs["baselines"]
    assert ours["data"]["prepared"]["shards"] == 40
    assert 0 < ours["data"]["prepared"]["users_in_memory"] < 1000
    for name in OBJECTIVES:
        one, other = (m["protocols"]["unseen"][name] for m in (ours, theirs))
        assert one["users"] == other["users"] > 300
        low, high = np.array(other["recall@10_ci95"]) - other["recall@10"]
        # The interval of one run is about what two differ by.
        assert low < one["recall@10"] - other["recall@10"] < high
        popular = ours["baselines"]["popularity"]["unseen"][name]["recall@10"]
        assert one["recall@10"] > popular


@pytest.mark.slow
def test_a_sweep_of_the_folder_is_that_of_the_log(log, tmp_path):
    tree, folder = log
    space = tmp_path / "space.yaml"
    space.write_text("cascade.stages.click.learning_rate: {float: [0.001, 0.1]}")
    found = []
    for name, config, options in (
        ("memory", joined(tree), []),
        ("disk", SMALL, ["--prepared", folder]),
    ):
        path, output = tmp_path / f"{name}.yaml", tmp_path / name
        path.write_text(yaml.safe_dump(config))
        arguments = ["--config", str(path), "--space", str(space), "--trials", "1"]
        arguments += ["--output", str(output), "--quiet", "--debug", *options]
        assert cli.run(sweep.main, arguments) == 0
        content = json.loads((output / "report" / "sweep.json").read_text())
        trials = (content["reference"], *content["trials"])
        found.append([(trial["settings"], trial["values"]) for trial in trials])
    assert found[0] == found[1] and len(found[0]) == 2
    best = yaml.safe_load((tmp_path / "disk" / "best.yaml").read_text())
    assert best["data"]["prepared"] == folder
