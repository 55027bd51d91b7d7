"""The sweep command on the simulator: real trials, kills, parallel workers."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import run_cascade
import sweep

from tfcsmf import cli

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "simulator": {"users": 60, "items": 40, "exposures_per_user": 20},
    "towers": {
        "dimension": 8,
        "hidden_units": [],
        "embedding_dimension": 6,
        "feature_dimension": 4,
    },
    "cascade": {
        "objectives": ["exposure", "click"],
        "stage": {"batch_size": 64, "epochs": 1, "recovery_epochs": 0},
    },
    "evaluation": {"validation_k": 5},
}
SPACE = {"cascade.stages.click.learning_rate": {"float": [0.001, 0.1], "log": True}}


def arguments(folder, *more, space=SPACE):
    for name, tree in (("small", SMALL), ("space", space)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    common = ["--config", str(folder / "small.yaml"), "--quiet"]
    return [*common, "--space", str(folder / "space.yaml"), *more]


@pytest.mark.slow
def test_a_sweep_shares_stages_and_leaves_a_configuration(tmp_path, capsys):
    out = tmp_path / "out"
    status = cli.run(
        sweep.main, arguments(tmp_path, "--output", str(out), "--trials=1")
    )
    assert status == cli.OK
    printed = capsys.readouterr().out
    assert (out / "report/sweep.txt").read_text().strip() in printed
    content = json.loads((out / "report/sweep.json").read_text())
    [trial] = content["trials"]
    assert [stage["reused"] for stage in trial["stages"]] == [True, False]
    exposure = content["reference"]["values"]["exposure"]
    assert trial["values"]["exposure"] == exposure
    assert f"--config {out}/best.yaml" in printed
    # What `run_cascade.py --config` reads; training it is another test's.
    parsed = run_cascade.parser().parse_args(["--config", str(out / "best.yaml")])
    from tfcsmf.config import Config

    assert Config.from_yaml(parsed.config).towers.dimension == 8


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("cascade.stage.tua: {float: [0.1, 0.2]}", "Did you mean 'cascade.stage.tau'"),
        ("cascade.stage.tau: {float: [0.2, 0.1]}", "low < high"),
        ("", "at least one path"),
        ("[1, 2]", "mapping"),
    ],
)
def test_mistakes_are_told_in_words(tmp_path, capsys, space, words):
    path = tmp_path / "space.yaml"
    path.write_text(space)
    options = ["--space", str(path), "--output", str(tmp_path / "out")]
    assert cli.run(sweep.main, options) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def start(options, log, **environment):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / "sweep.py"), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
        stdout=log,
        stderr=log,
    )


def results(out):
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (out / "trials").glob("*/trial.json")
        if json.loads(path.read_text())["status"] != "running"
    }


def values(out):
    content = json.loads((out / "report/sweep.json").read_text())
    return [
        {key: trial[key] for key in ("name", "settings", "values", "score", "status")}
        for trial in (content["reference"], *content["trials"])
    ]


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        options = arguments(tmp_path, "--trials=3", "--debug")
        assert start([*options, "--output", str(whole)], log).wait(600) == 0
        options += ["--resume", "--output", str(killed)]
        for finished in (0, 1, 3):  # killed after so many, in the middle of the next
            before = results(killed)
            process = start(options, log)
            while len(results(killed)) <= finished and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
            assert before.items() <= results(killed).items()
        before = results(killed)
        assert start(options, log).wait(600) == 0
    assert before.items() <= results(killed).items()
    assert values(killed) == values(whole)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
def test_a_chief_and_two_workers_share_a_sweep(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    parallel = {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(free_port()),
    }
    with open(tmp_path / "log", "w") as log:
        # Between processes keras-tuner rounds floats, not choices.
        rates = {"choice": [0.001, 0.003, 0.01, 0.03, 0.1]}
        options = arguments(
            tmp_path,
            *("--trials=4", "--prune-after=0", "--debug"),
            space={"cascade.stages.click.learning_rate": rates},
        )
        assert start([*options, "--output", str(alone)], log).wait(900) == 0
        options += ["--output", str(together)]
        processes = [
            start(options, log, KERASTUNER_TUNER_ID=name, **parallel)
            for name in ("worker1", "chief", "worker2")
        ]
        assert [process.wait(900) for process in processes] == [0, 0, 0]

    def by_settings(out):
        return {str(one["settings"]): one["values"] for one in values(out)}

    assert by_settings(together) == by_settings(alone)
