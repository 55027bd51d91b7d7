"""Stages that trials share: the state after stage t, by all that decides it.

Everything random in training is a function of the seed, the stage and the step, so
two configurations that agree in all that stages 1..t use have the same state after
stage t, bit for bit. Its key is a hash of the log and of the *whole* resolved
configuration, less only what is known not to be used so far:

- the settings of later stages;
- for the first stage, the margin and the hard negatives, which begin with stage 2.

What is not on this list counts, so a new setting can only make trials share less.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.cascade.checkpoints import Checkpoint, CheckpointStore
from tfcsmf.cascade.run_folder import git_revision, versions
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import TfcsmfError
from tfcsmf.files import atomic_directory

_LOG = logging.getLogger(__name__)
# Of a prepared log: what is not used in training or validation.
_NOT_TRAINED_ON = ("test", "test_histories", "summary")


def stage_key(config: Config, log: str, stage: int) -> str:
    """Returns the key of the state after a stage.

    Args:
      config: of the trial.
      log: fingerprint of its log.
      stage: the last stage, 0-based.
    """
    tree = config.to_dict()
    objectives = tree["cascade"]["objectives"]
    del tree["cascade"]["stage"], tree["cascade"]["stages"]
    if stage == 0:
        del tree["loss"]["margin"], tree["loss"]["hard_negatives"]
    content = {
        "settings": tree,
        "stages": [config.stage(o).model_dump() for o in objectives[: stage + 1]],
        "log": log,
        "code": _code(),
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _code() -> tuple[dict[str, str], str | None]:
    """What runs: of the process, whatever is committed while it does."""
    return versions(), git_revision()


def log_fingerprint(log: PreparedLog) -> str:
    """Returns a hash of all that training and validation see of a log."""
    digest = hashlib.sha256()
    _feed(digest, log)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        if value.dtype == object:
            digest.update(json.dumps(value.tolist(), default=str).encode())
        else:
            digest.update(np.ascontiguousarray(value).tobytes())
    elif hasattr(value, "to_dict"):  # feature encoders
        digest.update(json.dumps(value.to_dict(), default=str).encode())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if not (isinstance(value, PreparedLog) and field.name in _NOT_TRAINED_ON):
                _feed(digest, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key}=".encode())
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


class StageCache:
    """A folder of states, each as large as a checkpoint; the oldest go first.

    Several processes may use it at once: a state appears as a whole, and one that
    is gone or damaged counts as not there.

    Args:
      directory: the folder; created on the first save.
      most: states kept, those used last; 0 keeps none.
    """

    def __init__(self, directory: str | Path, most: int) -> None:
        self.directory = Path(directory)
        self.most = most

    def load(self, key: str) -> Checkpoint | None:
        """Returns the state of a key, if there is one."""
        if not self.most:
            return None
        path = self.directory / key
        try:
            found = CheckpointStore(path).latest()
            if found is None:
                return None
            os.utime(path)  # used last
            # At once: another process may remove it.
            return dataclasses.replace(found, arrays=dict(found.arrays))
        except (TfcsmfError, OSError) as error:
            _LOG.warning("A finished stage cannot be reused: %s", error)
            return None

    def save(
        self, key: str, state: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> None:
        """Keeps a state; one that is there already stays."""
        path = self.directory / key
        if not self.most or path.exists():
            return
        try:
            with atomic_directory(path) as folder:
                CheckpointStore(folder).save(state, arrays)
        except TfcsmfError:
            return  # another worker was faster
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        ages: list[tuple[float, Path]] = []
        for path in self.directory.iterdir():
            try:
                ages.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another worker removed it
                continue
        complete = sorted(age for age in ages if not age[1].name.startswith("."))
        for _, path in complete[: -self.most]:
            shutil.rmtree(path, ignore_errors=True)
