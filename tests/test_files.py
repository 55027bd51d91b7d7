import os
import stat

import pytest

from tfcsmf.errors import TfcsmfError
from tfcsmf.files import atomic_directory, write_atomic


def test_writes_text_and_bytes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "één\n")
    assert path.read_bytes() == "één\n".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_others_may_read_as_far_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a.txt", "x")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "serving" / "3"
    with atomic_directory(target) as folder:
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_text("x")
        assert folder.parent == target.parent and folder.name.startswith(".")
        assert not target.exists()
    assert (target / "variables" / "data").read_text() == "x"
    assert os.listdir(target.parent) == ["3"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_directory(tmp_path / "1") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_never_overwrites_a_folder(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(TfcsmfError, match="not exist yet"):
        with atomic_directory(tmp_path / "1"):
            raise AssertionError("the block must not run")
    with pytest.raises(TfcsmfError, match="not exist yet"):
        with atomic_directory(tmp_path / "2"):
            (tmp_path / "2").mkdir()  # somebody was faster
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
