"""A chief with two parameter servers on loopback trains what one process trains.

`server_runs.py` makes the runs; here their ends are compared, bit by bit.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_workers import CONFIG as WORKERS

from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.cascade.parameter_servers import check_shards, server_place
from tfcsmf.config import Config, SimulatorConfig
from tfcsmf.data.simulator import simulate
from tfcsmf.errors import ConfigError

SCRIPT = Path(__file__).with_name("server_runs.py")
# One process makes all steps, so nothing has to be left out of what is compared.
CASCADE = {k: v for k, v in WORKERS["cascade"].items() if k != "dimension_information"}
CONFIG = WORKERS | {"cascade": CASCADE}


def end_of(output):
    """Returns the last checkpoint, tables as a whole, and the metrics."""
    checkpoint = CheckpointStore(output / "checkpoints").latest()
    arrays, shards = {}, {}
    for name, value in checkpoint.arrays.items():
        whole, _, number = name.rpartition("/")
        if whole.endswith("_id/table"):
            shards.setdefault(whole, {})[int(number)] = value
        else:
            arrays[name] = value
    for name, parts in shards.items():
        ordered = [parts[number] for number in range(len(parts))]
        assert {len(part) for part in ordered[:-1]} == {8}
        arrays[name] = np.concatenate(ordered)
    metrics = json.loads((output / "report" / "metrics.json").read_text())
    return arrays, checkpoint.state, metrics, sorted(shards)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_chief_ends_like_one_process(tmp_path):
    data = {"events": str(tmp_path / "events.parquet")}
    world = SimulatorConfig(users=40, items=30, exposures_per_user=20)
    simulation = simulate(world, CONFIG["cascade"]["objectives"], 0)
    simulation.events.write_parquet(data["events"])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"data": data}))
    command = [sys.executable, str(SCRIPT), str(config), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    killed = -signal.SIGKILL
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "order": [0, 0],
        "one": 0,
        "sharded": [0, 0, 0],
        # The server that is left ends with the chief.
        "lost": [2, 0, killed],
        "resumed": [0, 0],
    }, logs
    assert "start all again with --resume" in logs["lost.chief0.log"]
    expected, state, metrics, _ = end_of(tmp_path / "one")
    for name in ("sharded", "lost"):
        arrays, ours, mine, shards = end_of(tmp_path / name)
        assert "model/query/user_id/table" in shards
        assert "owner/candidate/item_id/table" in shards
        assert arrays.keys() == expected.keys()
        for key, value in expected.items():
            assert arrays[key].tobytes() == value.tobytes(), (name, key)
        assert ours["curves"] == state["curves"]
        assert mine["protocols"] == metrics["protocols"]
        assert mine["model"] == metrics["model"]
        assert mine["frozen_max_abs_change"] == 0.0
        for stage, other in zip(mine["stages"], metrics["stages"], strict=True):
            assert stage["freed_share"] == other["freed_share"]
        assert (tmp_path / name / "serving" / "1").is_dir()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "no JSON",
        '{"cluster": {"chief": ["a:1"], "ps": ["b:1"]}}',
        '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"chief": ["a:1"], "ps": ["b:1"]}, '
        '"task": {"type": "ps", "index": 1}}',
        '{"cluster": {"chief": ["a:1"], "ps": ["b:1"], "worker": ["c:1"]}, '
        '"task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_cluster_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="needs TF_CONFIG, as in .*Received: "):
        server_place(text)


@pytest.mark.parametrize(
    "setting", ["towers.embedding_ownership=columns", "cascade.criterion=fisher"]
)
def test_what_needs_whole_tables_is_refused(setting):
    with pytest.raises(ConfigError, match=f"Received: {re.escape(setting)}"):
        check_shards(Config.from_dict({}, [setting]))
    check_shards(Config())
