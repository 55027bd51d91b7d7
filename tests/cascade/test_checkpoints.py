"""Checkpoints: atomic, checked, pruned, and written at a bearable pace."""

import errno
import json
import math
import random
import shutil

import numpy as np
import pytest

from tfcsmf.cascade.checkpoints import CheckpointStore, SavePace
from tfcsmf.errors import CheckpointError


def _filled(directory, count=3, keep=2):
    store = CheckpointStore(directory, keep)
    for number in range(count):
        store.save({"step": number}, {"a/x": np.full(3, number), "b": np.eye(2)})
    return store


def test_what_is_saved_is_loaded(tmp_path):
    arrays = {
        "model/x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "owner/x": np.full((2, 1), -1, np.int8),
        "optimizer/0": np.int64(7),
        "empty": np.zeros((0, 4), np.float32),
    }
    state = {"step": 3, "losses": 0.1 + 0.2, "best": None, "curves": {"é": [1.0]}}
    store = CheckpointStore(tmp_path)
    path = store.save(state, arrays)
    found = CheckpointStore(tmp_path).latest()
    assert found.path == path
    assert found.state == state
    assert found.arrays.keys() == arrays.keys()
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(found.arrays[name], value)


def test_a_damaged_checkpoint_falls_back(tmp_path, caplog):
    store = _filled(tmp_path / "checkpoints")
    assert len(list(store.directory.iterdir())) == 2
    newest = store.latest()
    assert newest.state == {"step": 2}
    (newest.path / "variables.npz").write_bytes(b"half a file")
    older = store.latest()
    assert older.state == {"step": 1}
    assert older.arrays["a/x"].tolist() == [1, 1, 1]
    assert "damaged" in caplog.text
    (older.path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="No checkpoint"):
        store.latest()


def test_what_was_found_damaged_does_not_push_out_what_is_intact(tmp_path):
    store = _filled(tmp_path / "checkpoints")
    newest = store.latest().path
    (newest / "variables.npz").write_bytes(b"")
    assert store.latest().state == {"step": 1}
    store.save({"step": 9}, {"a/x": np.ones(3)})
    assert not newest.exists()
    shutil.rmtree(store.latest().path)
    assert store.latest().state == {"step": 1}


@pytest.mark.parametrize("name", ["variables.npz", "state.json"])
def test_no_changed_bit_goes_unnoticed(tmp_path, name):
    """It is found, or what is loaded is the same (zip has fields nobody reads)."""
    store = _filled(tmp_path, count=1)
    before = store.latest()
    file = before.path / name
    content = file.read_bytes()
    generator, found = random.Random(0), 0
    for _ in range(300):
        changed = bytearray(content)
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        try:
            after = CheckpointStore(tmp_path).latest()
        except CheckpointError:
            found += 1
            continue
        assert after.state == before.state
        assert after.arrays.keys() == before.arrays.keys()
        for key, value in before.arrays.items():
            assert after.arrays[key].tobytes() == value.tobytes()
    assert found > 150
    for size in range(0, len(content), 7):  # written in part
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            CheckpointStore(tmp_path).latest()


def test_swapped_arrays_are_noticed(tmp_path):
    """Each file is intact by itself, but they are of two checkpoints."""
    store = _filled(tmp_path, count=2)
    old, new = sorted(path for path in tmp_path.iterdir())
    shutil.copy(old / "variables.npz", new / "variables.npz")
    assert store.latest().state == {"step": 0}


def test_a_killed_save_leaves_nothing_behind_for_long(tmp_path):
    store = _filled(tmp_path, count=1)
    partial = tmp_path / ".00000001.0123456789ab.partial"
    partial.mkdir()
    (partial / "variables.npz").write_bytes(b"half")
    assert store.latest().state == {"step": 0}
    store.save({"step": 1}, {"a/x": np.ones(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000", "00000001"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    store = _filled(tmp_path, count=1)
    write = np.lib.format.write_array

    def full(file, *arguments, **options):
        write(file, *arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store.save({"step": 1}, {"a/x": np.ones(3)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "00000001")
    assert [path.name for path in tmp_path.iterdir()] == ["00000000"]
    assert store.latest().state == {"step": 0}
    monkeypatch.undo()
    store.save({"step": 1}, {"a/x": np.ones(3)})
    assert store.latest().state == {"step": 1}


def test_state_is_readable_by_people(tmp_path):
    store = _filled(tmp_path, count=1)
    content = json.loads((store.latest().path / "state.json").read_text())
    assert content["state"] == {"step": 0}
    assert set(content["arrays"]) == {"a/x.npy", "b.npy"}


def test_no_checkpoint_is_no_error(tmp_path):
    assert CheckpointStore(tmp_path / "none").latest() is None


def _pace(**options):
    now = [0.0]
    return now, SavePace(every=10, clock=lambda: now[0], **options)


def _saving(pace, now, seconds):
    with pace.saving():
        now[0] += seconds


def test_saves_at_multiples_of_the_steps():
    _, pace = _pace()
    assert [step for step in range(1, 31) if pace.due(step)] == [10, 20, 30]


def test_saving_takes_a_bounded_share_of_the_time():
    now, pace = _pace(share=0.05)
    _saving(pace, now, 5.0)
    now[0] += 99.0
    assert not pace.due(20)
    now[0] += 1.0  # 5 s are 5 % of 100 s
    assert pace.due(20)
    assert not pace.due(21)


def test_slow_steps_are_saved_by_time():
    now, pace = _pace(longest=600.0)
    now[0] += 599.0
    assert not pace.due(3)
    now[0] += 1.0
    assert pace.due(3)
    _saving(pace, now, 60.0)  # 5 % of 20 minutes
    now[0] += 600.0
    assert not pace.due(4)
    now[0] += 600.0
    assert pace.due(4)


def test_an_infinite_share_always_saves():
    now, pace = _pace(share=math.inf)
    _saving(pace, now, 5.0)
    assert pace.due(20)
