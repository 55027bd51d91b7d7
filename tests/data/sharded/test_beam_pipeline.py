"""A Beam pipeline gives the files that the preparation on one machine gives."""

import runpy
from pathlib import Path

import pytest
from test_sharded import CASES, config_of, write_events

from tfcsmf.data.sharded.beam_pipeline import prepare_with_beam
from tfcsmf.data.sharded.local import prepare_sharded

PIPELINE = Path(__file__).resolve().parents[3] / "pipelines" / "prepare.py"


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check(case, tmp_path):
    columns, data = CASES[case]
    config = config_of(write_events(tmp_path / "log", columns=columns), **data)
    prepare_sharded(config, tmp_path / "one", shards=5)
    # More than one worker: facts are merged in another order.
    options = ["--runner=DirectRunner", "--direct_num_workers=2"]
    prepare_with_beam(config, tmp_path / "many", 5, options)
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert one.keys() == many.keys() and len(one) == 16
    assert [name for name in one if one[name] != many[name]] == []


def test_files_are_the_same(tmp_path):
    check("time", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "time"])
def test_files_are_the_same_however_the_log_is_split(case, tmp_path):
    check(case, tmp_path)


def test_the_command_prepares_with_and_without_beam(tmp_path, capsys):
    run = runpy.run_path(str(PIPELINE))
    events = write_events(tmp_path / "log", users=1, size=60)
    argv = ["--events", events, "--objectives", "view,cart", "--quiet"]
    assert run["main"]([*argv, "--output", str(tmp_path / "one")]) == 0
    assert "1 shards" in capsys.readouterr().out
    beam = ["--runner", "DirectRunner", "--direct_num_workers", "1"]
    assert run["main"]([*argv, *beam, "--output", str(tmp_path / "many")]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    for wrong in (beam[2:], ["--shards", "0"], []):
        status = run["cli"].run(
            run["main"], [*argv, *wrong, "--output", str(tmp_path / "one")]
        )
        assert status == 2
    message = capsys.readouterr().err
    assert "direct_num_workers" in message and "at least 1" in message
    assert "another --output" in message
