"""Resumable checkpoints: one folder per checkpoint, written atomically.

A checkpoint is `variables.npz` (every array of the training state by name) and
`state.json` (where training is). Both carry CRC-32 sums: of every array, which the
archive computes as it is written and checks as it is read, so that large tables are
not read once more for a digest, and of the state, which lists those of the arrays.
A damaged checkpoint is reported and the one before is used.

One array at a time is in memory, so that a checkpoint may be larger than that. It is
read through before it is used, and array by array as it is.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.errors import CheckpointError
from tfcsmf.files import atomic_directory, write_atomic

_LOG = logging.getLogger(__name__)
_ARRAYS, _STATE, _SCHEMA = "variables.npz", "state.json", "schema.json"
_NPY = ".npy"  # ending of an array's name in the archive
# What reading a damaged file may raise; running out of memory is not damage.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
      state: JSON-able position in training.
      arrays: by name; those of a stored one are read whenever they are asked for.
      path: its folder.
    """

    state: dict[str, Any]
    arrays: Mapping[str, Any]
    path: Path


class _StoredArrays(Mapping[str, np.ndarray]):
    """The arrays of an archive, read on demand."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path = path
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with np.load(self._path, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SavePace:
    """Decides when a checkpoint is worth the time it takes.

    One is due at every multiple of `every` steps and whenever `longest` seconds have
    passed, but only once the time since the last one has paid for it: saving takes
    at most `share` of the time, however large the model. So little work is lost
    without slowing training down. *When* a run saves never changes what it computes.

    Args:
      every: steps, >= 1.
      share: largest share of the time spent on saving, > 0; infinite saves always.
      longest: seconds between checkpoints where `every` steps take longer.
      clock: returns seconds.
    """

    def __init__(
        self,
        every: int,
        share: float = 0.05,
        longest: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every = every
        self.share = share
        self.longest = longest
        self._clock = clock
        self._last, self._cost = clock(), 0.0

    def due(self, step: int) -> bool:
        """Returns whether to save after this many steps of a phase."""
        waited = self._clock() - self._last
        wanted = step % self.every == 0 or waited >= self.longest
        return wanted and self.affordable()

    def affordable(self) -> bool:
        """Returns whether the time since the last checkpoint has paid for one."""
        return self._cost / self.share <= self._clock() - self._last

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measures what is done inside."""
        began = self._clock()
        yield
        self._last = self._clock()
        self._cost = self._last - began


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
      directory: the folder; created on the first save.
      keep: checkpoints kept, newest first, >= 1.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep
        self._damaged: set[int] = set()

    def save(self, state: Mapping[str, Any], arrays: Mapping[str, Any]) -> Path:
        """Writes one checkpoint and removes the oldest ones.

        Args:
          state: JSON-able.
          arrays: what `np.asarray` makes arrays of, one after the other.

        Raises:
          OSError: if it cannot be written; the earlier ones are left alone.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        numbers = self._numbers()
        path = self._path(numbers[-1] + 1 if numbers else 0)
        try:
            with atomic_directory(path) as folder:
                _write(folder / _ARRAYS, arrays)
                with zipfile.ZipFile(folder / _ARRAYS) as archive:
                    content = {"state": dict(state), "arrays": _sums(archive)}
                whole = {"crc32": _sum(content)} | content
                text = json.dumps(whole, indent=1)
                (folder / _STATE).write_text(text, encoding="utf-8")
        except OSError as error:
            # Writes through the archive do not say which file they failed on.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        # Those found damaged go first: they are not what `keep` should keep.
        intact = [n for n in self._numbers() if n not in self._damaged]
        for old in {*self._damaged, *intact[: -self.keep]}:
            shutil.rmtree(self._path(old), ignore_errors=True)
        self._damaged.clear()
        return path

    def latest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that is intact, `None` if there is none.

        Raises:
          CheckpointError: if there are checkpoints and all of them are damaged.
        """
        numbers = self._numbers()
        for number in reversed(numbers):
            try:
                return _load(self._path(number))
            except CheckpointError as error:
                self._damaged.add(number)
                _LOG.warning("%s Falling back to the checkpoint before it.", error)
        if numbers:
            raise CheckpointError(
                f"No checkpoint in {str(self.directory)!r} is intact. Delete the "
                "folder and start the run again."
            )
        return None

    def clear(self) -> None:
        """Removes the folder with all checkpoints."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def save_schema(self, schema: Mapping[str, Any]) -> None:
        """Writes the schema the checkpoints belong to."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self.directory / _SCHEMA, json.dumps(schema, ensure_ascii=False))

    def load_schema(self) -> dict[str, Any]:
        """Reads the schema.

        Raises:
          CheckpointError: if it is missing or damaged.
        """
        path = self.directory / _SCHEMA
        try:
            schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return schema
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"A trained run should hold {str(path)!r}. Received: {error}. "
                "Name the output folder of a finished run."
            ) from error

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}"

    def _numbers(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (entry.name for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def _remove_leftovers(self) -> None:
        """Removes what a killed process had begun to write: a table's size each."""
        for entry in self.directory.glob(".*.partial"):
            shutil.rmtree(entry, ignore_errors=True)


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes what `np.savez` does, without all arrays in memory."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}{_NPY}", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def _load(path: Path) -> Checkpoint:
    try:
        content = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if content.pop("crc32") != _sum(content):
            raise ValueError("the state does not match its sum")
        with zipfile.ZipFile(path / _ARRAYS) as archive:
            if _sums(archive) != content["arrays"]:
                raise ValueError("the arrays do not match their sums")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} does not match its sum")
            names = [name.removesuffix(_NPY) for name in archive.namelist()]
        arrays = _StoredArrays(path / _ARRAYS, names)
        return Checkpoint(content["state"], arrays, path)
    except _DAMAGE as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is damaged: {error}."
        ) from error


def _sums(archive: zipfile.ZipFile) -> dict[str, int]:
    return {entry.filename: entry.CRC for entry in archive.infolist()}


def _sum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
