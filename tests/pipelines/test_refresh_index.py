import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tfcsmf import cli
from tfcsmf.cascade.model import build_model
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.retrieval.export import export_cascade
from tfcsmf.retrieval.exported import ExportedModel

_SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "refresh_index.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("refresh_pipeline", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = Config.from_dict(
        {
            "simulator": {"users": 100, "items": 50, "exposures_per_user": 20},
            "towers": {"dimension": 6, "embedding_dimension": 4, "hidden_units": [5]},
            "retrieval": {"k": 20},
        }
    )
    log = prepare(config)
    model = build_model(config, log)
    for parameter in model.owned_parameters:
        parameter.owner.assign(np.zeros(parameter.owner.shape, np.int8))
    model.block_owner.assign(np.int8([0, 0, 1, 1, 2, 2]))
    export_cascade(model, log, config, np.ones(3), folder / "serving")
    inputs = ExportedModel(folder).description["candidate_inputs"]
    table = {"item_id": [f"new{i}" for i in range(30)]}
    for name, spec in inputs.items():
        if spec["kind"] != "id":
            table[name] = [0.5] * 30 if spec["kind"] == "numeric" else [""] * 30
    pl.DataFrame(table).write_csv(folder / "items.csv")
    return folder


def test_it_publishes_and_says_where(main, run_folder, capsys):
    arguments = ["--model", str(run_folder), "--items", str(run_folder / "items.csv")]
    arguments += ["--vectors", str(run_folder / "vectors.parquet"), "--k", "5"]
    assert cli.run(main, arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(str(run_folder / "serving" / "2"))
    assert "index exact, recall 1.0000" in printed
    assert pl.read_parquet(run_folder / "vectors.parquet").height == 30
    assert {i.item_id[:3] for i in ExportedModel(run_folder).retrieve("u1")} == {"new"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--item-id", "sku"], "--item-id"),
        (["--target-recall", "2"], "target_recall"),
        (["--items", "nothing.csv"], "exists"),
        (["--model", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    main, run_folder, capsys, extra, message
):
    arguments = ["--model", str(run_folder), "--items", str(run_folder / "items.csv")]
    assert cli.run(main, arguments + extra) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ") and message in errors[-1]
