"""Writing files so that a reader never sees half of one.

Both helpers build under a hidden name in the same folder, flush to the disk and
rename; a rename within one file system is atomic.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfcsmf.errors import TfcsmfError


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a whole file, or nothing.

    The folder is created where missing. An existing file is replaced; a reader
    that has it open keeps the old content.

    Args:
      path: the file to write.
      content: text (written as UTF-8, line ends unchanged) or bytes.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> write_atomic(folder / "a" / "note.txt", "ready")
      >>> (folder / "a" / "note.txt").read_text()
      'ready'
      >>> [file.name for file in (folder / "a").iterdir()]
      ['note.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    hidden = _hidden_sibling(target)
    try:
        # "x" and not `tempfile`: its files are readable by their owner alone.
        with open(hidden, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, target)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    _fsync_directory(target.parent)


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Builds a folder under a hidden name and renames it into place at the end.

    If the block raises, the hidden folder is deleted and `path` never exists.

    Args:
      path: the folder to create; its parents are created where missing.

    Yields:
      The folder to fill.

    Raises:
      TfcsmfError: if `path` exists already, before or after the block.

    Example:
      >>> import tempfile
      >>> target = Path(tempfile.mkdtemp()) / "1"
      >>> with atomic_directory(target) as folder:
      ...     _ = (folder / "model").write_text("weights")
      ...     print(target.exists())
      False
      >>> (target / "model").read_text()
      'weights'
    """
    target = Path(path)
    _require_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden_sibling(target)
    hidden.mkdir()
    try:
        yield hidden
        _fsync_tree(hidden)
        # A rename onto an empty folder succeeds silently, hence the check.
        _require_absent(target)
        os.rename(hidden, target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    _fsync_directory(target.parent)


def _hidden_sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")


def _require_absent(target: Path) -> None:
    if os.path.lexists(target):
        raise TfcsmfError(
            "A new folder should not exist yet. "
            f"Received: {str(target)!r}. Remove it or choose another name."
        )


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _fsync_directory(Path(parent))


def _fsync_directory(folder: Path) -> None:
    """Makes a rename durable; not every platform can open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
