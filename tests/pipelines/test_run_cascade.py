"""The main command: what it leaves behind, and what it says to bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pipelines"))

import run_cascade

from tfcsmf import cli
from tfcsmf.config import StageConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "simulator": {"users": 80, "items": 50, "exposures_per_user": 20},
    "towers": {
        "dimension": 8,
        "embedding_dimension": 8,
        "feature_dimension": 4,
        "hidden_units": [16],
    },
    "loss": {"uniform_negatives": 16},
    "cascade": {
        "stage": {"epochs": 2, "batch_size": 64},
        "checkpoint_every": 5,
        "reserve": True,
    },
    "evaluation": {"ks": [5, 10], "validation_k": 5, "bootstrap_samples": 50},
    "retrieval": {"k": 20},
}


@pytest.fixture(scope="module")
def small_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


def _command(*arguments):
    return [sys.executable, str(ROOT / "pipelines" / "run_cascade.py"), *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_config):
    """A run in a process of its own: (folder, what it printed)."""
    output = tmp_path_factory.mktemp("runs") / "demo"
    done = subprocess.run(
        _command("--config", small_config, "--output", str(output)),
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_the_contract_files(finished):
    output, printed = finished
    tree = yaml.safe_load((output / "config.yaml").read_text())
    assert tree["run"]["status"] == "finished"
    assert tree["run"]["versions"]["tensorflow"].startswith("2.20")
    assert list((output / "checkpoints").glob("0*/state.json"))
    assert (output / "serving" / "1" / "saved_model.pb").is_file()
    assert (output / "report" / "index.html").is_file()
    assert len(list((output / "report").glob("*.png"))) >= 4
    assert "recall@10" in printed
    assert "pipelines/serve.py --model-base-path" in printed


def test_metrics_by_contract(finished):
    metrics = json.loads((finished[0] / "report" / "metrics.json").read_text())
    names = ["exposure", "click", "conversion"]
    assert metrics["objectives"] == names
    for systems in (metrics["protocols"], *metrics["baselines"].values()):
        for protocol in ("standard", "unseen"):
            for name in names:
                result = systems[protocol][name]
                assert result["users"] > 0
                low, high = result["recall@5_ci95"]
                assert 0 <= low <= result["recall@5"] <= high <= 1
                assert {"ndcg@10", "hit_rate@10"} <= result.keys()
    assert [stage["name"] for stage in metrics["stages"]] == names
    for stage in metrics["stages"]:
        assert stage["examples_per_second"] > 0
        assert all(0 <= share <= 1 for share in stage["freed_share"].values())
        assert {"examples", "seconds", "epochs", "best_validation"} <= stage.keys()
    model = metrics["model"]
    assert model["dimension"] == 8
    # Capacity was reserved, so some dimensions belong to nobody yet.
    assert sum(model["blocks"]) < 8
    assert 0 < model["dense_parameters"] < model["parameters"]
    assert metrics["frozen_max_abs_change"] == 0.0


def test_a_second_run_adds_a_version_and_extending_keeps_old_objectives(
    finished, tmp_path, small_config
):
    output, _ = finished
    before = json.loads((output / "report" / "metrics.json").read_text())
    events = tmp_path / "events.parquet"
    from tfcsmf.config import Config
    from tfcsmf.data.simulator import simulate

    config = Config.from_dict(SMALL)
    names = (*config.cascade.objectives, "repeat")
    simulation = simulate(config.simulator, names, config.seed)
    simulation.events.write_parquet(events)
    simulation.items.write_parquet(tmp_path / "items.parquet")
    simulation.users.write_parquet(tmp_path / "users.parquet")
    extended = tmp_path / "extended"
    arguments = ["--extend", str(output), "--objectives", ",".join(names)]
    arguments += ["--events", str(events), "--items", str(tmp_path / "items.parquet")]
    arguments += ["--users", str(tmp_path / "users.parquet")]
    arguments += ["--output", str(extended), "--quiet", "--debug"]
    assert cli.run(run_cascade.main, arguments) == 0
    metrics = json.loads((extended / "report" / "metrics.json").read_text())
    assert [stage["name"] for stage in metrics["stages"]] == list(names)
    assert metrics["frozen_max_abs_change"] == 0.0
    assert metrics["model"]["parameters"] == before["model"]["parameters"]
    assert metrics["model"]["blocks"][:3] == before["model"]["blocks"]
    assert metrics["model"]["blocks"][3] >= 1


def test_a_finished_run_says_so_on_resume(finished, small_config, capsys):
    output, printed = finished
    arguments = ["--config", small_config, "--output", str(output), "--resume"]
    assert cli.run(run_cascade.main, arguments) == 0
    assert capsys.readouterr().out.splitlines()[:5] == printed.splitlines()[:5]
    assert len(list((output / "serving").iterdir())) == 1


def test_a_killed_run_continues_only_with_resume(
    tmp_path, small_config, finished, capsys, caplog
):
    output = tmp_path / "killed"
    arguments = ["--config", small_config, "--output", str(output), "--quiet"]
    process = subprocess.Popen(_command(*arguments), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("checkpoints/0000000[2-9]")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert cli.run(run_cascade.main, arguments) == 2  # nothing is thrown away
    changed = [*arguments, "--resume", "--set", "cascade.stage.tau=0.2"]
    capsys.readouterr()
    assert cli.run(run_cascade.main, changed) == 2
    error = capsys.readouterr().err
    assert f"cascade.stage.tau: {StageConfig().tau} before, 0.2 now" in error
    # What the message proposes works, whatever the defaults of the code are now.
    assert f"--config {output / 'config.yaml'}" in error
    own = ["--config", str(output / "config.yaml"), "--output", str(output), "--quiet"]
    caplog.set_level("INFO")
    assert cli.run(run_cascade.main, [*own, "--resume"]) == 0
    # From where it was, and not once more from the start, which ends the same.
    assert "Resuming at stage" in caplog.text
    ours = json.loads((output / "report" / "metrics.json").read_text())
    theirs = json.loads((finished[0] / "report" / "metrics.json").read_text())
    assert ours["protocols"] == theirs["protocols"]
    assert ours["scales"] == theirs["scales"]


def _log(folder, rows=60):
    users = [f"u{row % 6}" for row in range(rows)]
    items = [f"i{row % 10}" for row in range(rows)]
    events = ["view" if row % 3 else "buy" for row in range(rows)]
    frame = pl.DataFrame({"user_id": users, "item_id": items, "event": events})
    return frame.with_row_index("timestamp").with_columns(
        pl.col("timestamp").cast(pl.Int64)
    )


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.rename({"user_id": "usr_id"}), [], "usr_id"),
        (lambda f: f.drop("event"), [], "event"),
        (lambda f: f, ["--objectives", "view,bye"], "'buy'"),
        (
            lambda f: f.with_columns(user_id=pl.lit(None, pl.String)),
            [],
            "user_id",
        ),
        (lambda f: f.clear(), [], "events"),
        (lambda f: f, ["--index", "ivff"], "'retrieval.index'"),
        (
            lambda f: f,
            ["--set", "towers.dimensoin=3"],
            "Did you mean 'towers.dimension'",
        ),
        (lambda f: f, ["--set", "towers.dimension=-3"], "greater than or equal"),
        (lambda f: f, ["--config", "nowhere.yaml"], "nowhere.yaml"),
        (lambda f: f, ["--items", "nowhere.parquet"], "nowhere.parquet"),
        (lambda f: f, ["--extend", "nowhere"], "'nowhere' (no run)"),
        (lambda f: f.with_columns(item_id=pl.lit("one")), [], "two items"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    tmp_path, capsys, change, options, message
):
    events = tmp_path / "events.parquet"
    change(_log(tmp_path)).write_parquet(events)
    output = tmp_path / "out"
    arguments = ["--events", str(events), "--objectives", "view,buy"]
    arguments += ["--output", str(output), *options]
    assert cli.run(run_cascade.main, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert message in error
    assert "Traceback" not in error
    assert not (output / "serving").exists()


@pytest.mark.parametrize("options", [["--events", "nowhere.parquet"], ["--items", "x"]])
def test_bad_input_leaves_nothing_behind(tmp_path, options):
    nested, existing = tmp_path / "runs" / "first", tmp_path / "existing"
    existing.mkdir()
    for output in (nested, existing):
        assert cli.run(run_cascade.main, [*options, "--output", str(output)]) == 2
    # What was there before stays.
    assert [entry.name for entry in tmp_path.iterdir()] == ["existing"]


def test_one_item_is_refused_before_anything_is_written(tmp_path, capsys):
    events = tmp_path / "events.parquet"
    _log(tmp_path).with_columns(item_id=pl.lit("one")).write_parquet(events)
    output = tmp_path / "out"
    arguments = ["--events", str(events), "--objectives", "view,buy"]
    assert cli.run(run_cascade.main, [*arguments, "--output", str(output)]) == 2
    assert "two items" in capsys.readouterr().err
    assert not output.exists()


def test_a_refused_extension_leaves_nothing_behind(tmp_path, small_config, capsys):
    full = tmp_path / "full"
    arguments = ["--config", small_config, "--output", str(full), "--quiet"]
    arguments += ["--objectives", "exposure", "--set", "cascade.reserve=false"]
    arguments += ["--set", "cascade.stage.epochs=1"]
    assert cli.run(run_cascade.main, arguments) == 0
    extension = ["--extend", str(full), "--output", str(tmp_path / "more"), "--quiet"]
    capsys.readouterr()
    more = [*extension, "--objectives", "exposure,click"]
    assert cli.run(run_cascade.main, more) == 2
    assert "cascade.reserve=true" in capsys.readouterr().err
    other = [*extension, "--objectives", "click,exposure"]
    assert cli.run(run_cascade.main, other) == 2
    assert "then the new ones" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()

    from tfcsmf.cascade.run import run_cascade as run
    from tfcsmf.config import Config
    from tfcsmf.errors import ConfigError

    config = Config.from_yaml(small_config, ["cascade.objectives=[click, buy]"])
    with pytest.raises(ConfigError, match="and then the new ones"):
        run(config, tmp_path / "more", extend=full)
    assert not (tmp_path / "more").exists()


def test_a_run_on_the_simulator_says_so(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    arguments = ["--output", str(tmp_path / "out")]
    # Refused once the log is made, so that nothing is trained here.
    arguments += ["--objectives", "view, buy,", "--set", "data.ignore=[colour_]"]
    assert cli.run(run_cascade.main, arguments) == 2
    assert "data.ignore" in capsys.readouterr().err
    assert "the built-in simulator makes one with the objectives view > buy." in (
        caplog.text
    )


@pytest.mark.parametrize("content", [b"", b"PAR1 not really parquet PAR1"])
def test_a_broken_file_names_itself(tmp_path, capsys, content):
    events = tmp_path / "events.parquet"
    events.write_bytes(content)
    arguments = ["--events", str(events), "--output", str(tmp_path / "out")]
    assert cli.run(run_cascade.main, arguments) == 2
    assert "events.parquet" in capsys.readouterr().err


def test_an_unknown_flag_is_status_2():
    done = subprocess.run(_command("--evnets", "x"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_two_runs_in_one_folder(tmp_path, capsys):
    from tfcsmf.cascade.run_folder import RunFolder

    with RunFolder(tmp_path).locked():
        assert cli.run(run_cascade.main, ["--output", str(tmp_path)]) == 2
    assert "another run" in capsys.readouterr().err


def test_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--output", str(tmp_path / "file")]
    assert cli.run(run_cascade.main, arguments) == 2
    assert "folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_message():
    def fail(_):
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)
        return 0

    assert cli.run(fail, []) == 2
