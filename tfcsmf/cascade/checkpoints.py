"""Resumable checkpoints: one folder per checkpoint, written atomically.

A checkpoint is `variables.npz` (every array of the training state by name) and
`state.json` (where training is, and the digest of the arrays). A damaged one is
reported and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.errors import CheckpointError
from tfcsmf.files import atomic_directory, write_atomic

_LOG = logging.getLogger(__name__)
_ARRAYS, _STATE, _SCHEMA = "variables.npz", "state.json", "schema.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
      state: JSON-able position in training.
      arrays: by name.
      path: its folder.
    """

    state: dict[str, Any]
    arrays: dict[str, np.ndarray]
    path: Path


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
      directory: the folder; created on the first save.
      keep: checkpoints kept, newest first, >= 1.
    """

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def save(self, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
        """Writes one checkpoint and removes the oldest ones."""
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 0
        path = self.directory / f"{number:08d}"
        self.directory.mkdir(parents=True, exist_ok=True)
        with atomic_directory(path) as folder:
            np.savez(Path(folder) / _ARRAYS, **arrays)  # type: ignore[arg-type]
            digest = _digest(Path(folder) / _ARRAYS)
            content = json.dumps({"state": dict(state), "sha256": digest}, indent=1)
            (Path(folder) / _STATE).write_text(content, encoding="utf-8")
        for old in self._numbers()[: -self.keep]:
            shutil.rmtree(self.directory / f"{old:08d}", ignore_errors=True)
        return path

    def latest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that is intact, `None` if there is none.

        Raises:
          CheckpointError: if there are checkpoints and all of them are damaged.
        """
        numbers = self._numbers()
        for number in reversed(numbers):
            path = self.directory / f"{number:08d}"
            try:
                return _load(path)
            except CheckpointError as error:
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

    def _numbers(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (entry.name for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(name) for name in names if name.isdigit())


def _load(path: Path) -> Checkpoint:
    try:
        content = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if _digest(path / _ARRAYS) != content["sha256"]:
            raise ValueError("the arrays do not match their digest")
        with np.load(path / _ARRAYS, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
        return Checkpoint(content["state"], loaded, path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is damaged: {error}."
        ) from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
