import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tfcsmf import cli
from tfcsmf.cascade.model import build_model
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.retrieval.export import export_cascade
from tfcsmf.retrieval.exported import RetrievedItem
from tfcsmf.retrieval.requests import format_items

_SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "retrieve.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("retrieve_pipeline", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = Config.from_dict(
        {
            "simulator": {"users": 200, "items": 50, "exposures_per_user": 30},
            "towers": {"dimension": 6, "embedding_dimension": 4, "hidden_units": [5]},
            "retrieval": {"k": 20, "max_k": 40},
        }
    )
    log = prepare(config)
    model = build_model(config, log)
    for parameter in model.owned_parameters:
        parameter.owner.assign(np.zeros(parameter.owner.shape, np.int8))
    model.block_owner.assign(np.int8([0, 0, 1, 1, 2, 2]))
    export_cascade(model, log, config, np.ones(3), folder / "serving")
    return str(folder)


def test_it_prints_a_table(main, run_folder, capsys):
    arguments = ["--model", run_folder, "--user-id", "nobody", "--k", "3"]
    arguments += ["--weights", "exposure=0,conversion=2"]
    assert cli.run(main, arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    header = ["rank", "item_id", "score", "exposure", "click", "conversion"]
    assert lines[0].split() == header
    rows = [line.split() for line in lines[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    for row in rows:
        score, _, click, conversion = map(float, row[2:])
        assert score == pytest.approx(click + 2 * conversion, abs=3e-4)

    first = rows[0][1]
    arguments += ["--exclude", first, "--history", f"click={first}"]
    assert cli.run(main, arguments) == 0
    others = capsys.readouterr().out.splitlines()[1:]
    assert first not in [line.split()[1] for line in others]


def test_filters_and_another_k(main, run_folder, capsys):
    arguments = ["--model", run_folder, "--k", "40"]
    assert cli.run(main, arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 40
    parts = []
    for numbers in (range(6), range(6, 99)):
        values = ",".join(f"category_{number}" for number in numbers)
        assert cli.run(main, [*arguments, "--filter", f"category={values}"]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        parts.append({line.split()[1] for line in lines})
    assert all(parts) and not parts[0] & parts[1]
    assert cli.run(main, [*arguments, "--filter", "category=none such"]) == 0
    assert "No items are left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--weights", "clik=1"], "Did you mean 'click'"),
        (["--weights", "click"], "objective=number"),
        (["--history", "i1,i2"], "name=value"),
        (["--feature", "age"], "name=value"),
        (["--k", "41"], "retrieval.max_k"),
        (["--filter", "category_1"], "--filter takes name=value"),
        (["--filter", "categry=category_1"], "Did you mean 'category'"),
        (["--k", "0"], "Leave it out for 20"),
        (["--version", "4"], "one of [1]"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    main, run_folder, capsys, extra, message
):
    assert cli.run(main, ["--model", run_folder, *extra]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_a_missing_model_is_status_2(main, tmp_path, capsys):
    assert cli.run(main, ["--model", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_options_are_written_out(main, run_folder, capsys):
    assert cli.run(main, ["--model", run_folder, "--user", "u1"]) == 2
    assert "--user" in capsys.readouterr().err


def test_help_shows_an_example_and_every_default(main, capsys):
    assert cli.run(main, ["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "python pipelines/retrieve.py --model saved_models/shop" in printed
    for default in ("default: the newest", "default: none", "default 10"):
        assert default in printed


def test_an_id_with_a_line_end_stays_in_its_row():
    item = RetrievedItem("ü\n7", 1.5, {"buy": 0.5})
    _, row = format_items([item], ["buy"]).splitlines()
    assert row.split() == ["1", r"ü\n7", "1.5000", "0.5000"]
