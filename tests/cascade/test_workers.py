"""Two workers on loopback train what one process trains.

`worker_runs.py` makes the runs; here their ends are compared.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.cascade.parameter_servers import server_place
from tfcsmf.cascade.run import check_rows
from tfcsmf.cascade.workers import cluster_place
from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.simulator import simulate
from tfcsmf.errors import ConfigError

sys.path[:0] = [
    str(Path(__file__).resolve().parents[2] / "pipelines"),
    str(Path(__file__).resolve().parent),
]

import run_cascade  # noqa: E402
import worker_steps  # noqa: E402

SCRIPT = Path(__file__).with_name("worker_runs.py")
# Of entries up to 1 after some 20 steps of Adam, which the order of sums moves by 4e-7.
TOLERANCE = 1e-5
PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"
# Small, but with what differs between one process and two: drawn negatives, dropout,
# hidden ids, thinned histories, and a later stage with frozen entries.
CONFIG = {
    "towers": {
        "dimension": 6,
        "embedding_dimension": 4,
        "hidden_units": [8],
        "dropout": 0.1,
        "history_dropout": 0.2,
        "query_id_dropout": 0.5,
    },
    "loss": {"whole_catalogue": 0, "uniform_negatives": 8},
    "cascade": {
        "objectives": ["exposure", "click"],
        # By their kernels: a rotation of nearly equal dimensions would turn rounding
        # into other, equally good vectors.
        "dimension_information": "weights",
        "stage": {"epochs": 2, "recovery_epochs": 1, "batch_size": 101},
        "checkpoint_every": 1,
    },
    "evaluation": {"ks": [5], "validation_k": 5, "bootstrap_samples": 20},
    "retrieval": {"k": 10},
}


@pytest.mark.timeout(600)  # some seconds on idle cores
def test_two_workers_take_the_steps_of_one_process(tmp_path):
    script = Path(worker_steps.__file__)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as two:
        expected = worker_steps.steps()
        assert json.loads(two.communicate()[0].splitlines()[-1]) == [0, 0]
    moved = 0
    for number in range(2):
        with np.load(tmp_path / f"{number}.npz") as ours:
            assert ours.files == list(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
                kind, _, parameter = name.partition("/")
                if kind != "after":
                    continue
                frozen = np.broadcast_to(ours[f"owner/{parameter}"] == 0, value.shape)
                before = expected[f"before/{parameter}"]
                np.testing.assert_array_equal(ours[name][frozen], before[frozen])
                moved += int((ours[name] != before).sum())
    assert moved > 500


def runs(folder, *names, features=False, shards=0):
    """Returns the statuses that `worker_runs.py` printed.

    With shards two workers read them, and one process the log itself.
    """
    config = folder / "config.yaml"
    world = SimulatorConfig(users=40, items=30, exposures_per_user=20)
    simulation = simulate(world, CONFIG["cascade"]["objectives"], 0)
    data = {"events": str(folder / "events.parquet")}
    simulation.events.write_parquet(data["events"])
    if features:  # their tables take longer to trace
        for name in ("items", "users"):
            data[name] = str(folder / f"{name}.parquet")
            getattr(simulation, name).write_parquet(data[name])
    config.write_text(yaml.safe_dump(CONFIG | {"data": data}))
    if shards:
        prepared = folder / "prepared"
        prepare_sharded(Config.from_dict(CONFIG | {"data": data}), prepared, shards)
    command = [sys.executable, str(SCRIPT), str(config), str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = [path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))]
    assert done.returncode == 0, (done.stderr, logs)
    return json.loads(done.stdout.splitlines()[-1]), "\n".join(logs)


def end_of(output):
    """Returns the last checkpoint of a run and its metrics."""
    metrics = json.loads((output / "report" / "metrics.json").read_text())
    return CheckpointStore(output / "checkpoints").latest(), metrics


def losses(checkpoint):
    """Returns the mean loss of every epoch of every phase."""
    curves = checkpoint.state["curves"].values()
    phases = [phase for curve in curves for phase in curve["phases"]]
    return [loss for phase in phases for loss in phase["loss"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_end_like_one_process(tmp_path):
    check_two(tmp_path, features=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_with_features_end_like_one_process(tmp_path):
    check_two(tmp_path, features=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_from_a_folder_end_like_one_process_from_the_log(tmp_path):
    check_two(tmp_path, features=False, shards=3)


def check_two(tmp_path, features, shards=0):
    statuses, logs = runs(tmp_path, "one", "two", features=features, shards=shards)
    assert statuses == {"one": 0, "two": [0, 0]}, logs
    (ours, metrics), (theirs, expected) = (
        end_of(tmp_path / name) for name in ("two", "one")
    )
    assert metrics["frozen_max_abs_change"] == 0.0
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, value in theirs.arrays.items():
        if name.startswith("owner/") or name == "block_owner":
            np.testing.assert_array_equal(ours.arrays[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(
                ours.arrays[name], value, rtol=0, atol=TOLERANCE, err_msg=name
            )
    # Adam hardly notices gradients of another size; losses are those of the batches.
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    for mine, other in zip(metrics["stages"], expected["stages"], strict=True):
        assert mine["examples_seen"] == other["examples_seen"]
        assert mine["best_validation"] == pytest.approx(other["best_validation"])
    # The chief alone has written.
    assert not (tmp_path / "two.other").exists()
    # AutoGraph deletes its files when Python exits, which a forked child does not.
    left = {path.name for path in (tmp_path / "two.temporary").iterdir()}
    assert not {name for name in left if not name.startswith("__autograph_")}
    assert (tmp_path / "two" / "serving" / "1").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_workers_resume_to_the_same_end(tmp_path):
    statuses, logs = runs(tmp_path, "two", "killed", "lost")
    killed = [-signal.SIGKILL] * 2
    assert statuses["killed"] == killed and statuses["resumed"] == [0, 0], logs
    ours, theirs = (end_of(tmp_path / name)[0] for name in ("killed", "two"))
    for name, value in theirs.arrays.items():
        assert ours.arrays[name].tobytes() == value.tobytes(), name
    # The one that is left says so and ends.
    assert statuses["lost"] == [2, -signal.SIGKILL]
    assert "start all again with --resume" in logs
    # So does the one that learns at the start that the other has stopped.
    assert statuses["refused"] == [2, 2]
    assert "Worker 0 stopped; its own message says why" in logs


def test_the_documented_commands_are_those_that_are_tested():
    text = PAGE.read_text().replace("\\\n", " ")
    blocks = re.findall(r"export TF_CONFIG='(.*)'\n +(\S+ pipelines/.*)", text)
    places = {
        "multi_worker": cluster_place,
        "parameter_server": lambda place: server_place(place)[1],
    }
    found = []
    for place, command in blocks:
        _, script, *arguments = shlex.split(command)
        assert script == "pipelines/run_cascade.py"
        parsed = run_cascade.parser().parse_args(arguments)
        found.append(places[parsed.distribution](place))
    assert found == [(0, 2), (1, 2), None, 0]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "no JSON",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, '
        '"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_cluster_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="needs TF_CONFIG, as in .*Received: "):
        cluster_place(text)


def test_a_chief_comes_before_the_workers():
    cluster = '{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "task": '
    assert cluster_place(cluster + '{"type": "chief", "index": 0}}') == (0, 3)
    assert cluster_place(cluster + '{"type": "worker", "index": 1}}') == (2, 3)


def test_more_workers_than_rows_are_refused(tiny_config, tiny_log):
    class Few:
        count = 32

    check_rows(tiny_config, tiny_log, Few)
    Few.count = 33  # rows of a batch: 32
    with pytest.raises(ConfigError, match="at least 33. Received: 32 for 'exposure'"):
        check_rows(tiny_config, tiny_log, Few)
