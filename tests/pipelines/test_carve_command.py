import runpy
from pathlib import Path

import polars as pl

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "carve.py"


def test_the_command_writes_a_log_with_a_test_part(tmp_path, capsys):
    rows = [(f"u{u}", f"i{i}", "view") for u in range(4) for i in range(5)]
    events, output = tmp_path / "events.csv", tmp_path / "carved.parquet"
    pl.DataFrame(rows, ["user_id", "item_id", "event"], orient="row").write_csv(events)
    run = runpy.run_path(str(PIPELINE))
    argv = ["--events", str(events), "--output", str(output), "--take", "view=2"]
    assert run["main"](argv) == 0
    carved = pl.read_parquet(output)
    counts = carved["split"].value_counts(sort=True).rows()
    assert counts == [("train", 12), ("test", 8)]
    assert "test" in capsys.readouterr().out
    status = run["cli"].run(run["main"], [*argv[:-1], "view"])
    assert status == 2 and "view=3" in capsys.readouterr().err
