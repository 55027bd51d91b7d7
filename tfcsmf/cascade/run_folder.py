"""The folder of a run: its lock, its configuration, and whether it may be used."""

from __future__ import annotations

import datetime
import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tfcsmf.config import Config
from tfcsmf.errors import CheckpointError, ConfigError
from tfcsmf.files import write_atomic

_PACKAGES = (
    "tfcsmf",
    "tensorflow",
    "tf-keras",
    "tensorflow-recommenders",
    "scann",
    "numpy",
    "polars",
)


class RunFolder:
    """An output folder, used by one process at a time.

    Args:
      path: the folder; created when a run starts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.serving = self.path / "serving"
        self.metrics = self.path / "report" / "metrics.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the lock dies with the process.

        Where the block raises without having written anything, the folders made
        here are removed again.

        Raises:
          ConfigError: if another process holds it, or it cannot be written.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(lock, "w")  # noqa: SIM115
        except (
            FileExistsError,
            FileNotFoundError,
            NotADirectoryError,
            PermissionError,
        ) as error:
            raise ConfigError(
                f"--output should be a folder that can be written. Received: "
                f"{str(self.path)!r} ({error.strerror}). Choose another --output."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A failing run may have removed folder and lock since `open`.
                held = os.fstat(file.fileno()).st_nlink > 0
            except BlockingIOError:
                held = False
            if not held:
                raise ConfigError(
                    f"{str(self.path)!r} is in use by another run. Wait for it, or "
                    "choose another --output."
                )
            try:
                yield
            except BaseException:
                if made and [entry.name for entry in self.path.iterdir()] == [".lock"]:
                    lock.unlink()
                    _remove_empty(made)
                raise

    def run_section(self) -> dict[str, Any]:
        """Returns what is known of the run in this folder; empty if there is none."""
        if not self.config_path.is_file():
            return {}
        tree = self._read()
        section: dict[str, Any] = tree.get("run") or {}
        return section | {"status": section.get("status", "unfinished")}

    def check_same(
        self, config: Config, extends: Path | None, what: str = "--resume"
    ) -> None:
        """Refuses to resume with another configuration or another base run.

        Args:
          config: the configuration now.
          extends: the base run now.
          what: wants to continue, for the message.

        Raises:
          CheckpointError: with every difference.
        """
        tree = self._read()
        run = tree.pop("run", None) or {}
        before, now = _flat(tree), _flat(config.to_dict())
        before["--extend"] = run.get("extends")
        now["--extend"] = str(extends.resolve()) if extends else None
        changes = [
            f"  {key}: {before.get(key)!r} before, {now.get(key)!r} now"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changes:
            # An extending run takes the configuration of its base, never --config.
            own = "" if extends else f", give --config {self.config_path}"
            raise CheckpointError(
                f"{what} should continue the run in {str(self.path)!r} with its own "
                "configuration. Received other values:\n"
                + "\n".join(changes)
                + f"\nLeave the changed options out{own}, or choose another --output."
            )

    def write_config(
        self, config: Config, status: str, extends: Path | None, continued: bool
    ) -> None:
        """Writes config.yaml: the resolved tree and a `run` section.

        Args:
          config: the resolved tree.
          status: `running` or `finished`.
          extends: folder of the run that is being extended.
          continued: the run began earlier; its start is kept.
        """
        previous = self.run_section() if continued else {}
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        run = {
            "status": status,
            "started": previous.get("started", now),
            "written": now,
            "seed": config.seed,
            "extends": str(extends.resolve()) if extends else None,
            "git_revision": git_revision(),
            "versions": versions(),
        }
        tree = config.to_dict() | {"run": run}
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        write_atomic(self.config_path, text)

    def _read(self) -> dict[str, Any]:
        try:
            tree = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{str(self.config_path)!r} should be readable YAML. Received: {error}."
            ) from error
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{str(self.config_path)!r} should hold the configuration of a run. "
                f"Received: {type(tree).__name__}."
            )
        return tree


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, innermost first, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def versions() -> dict[str, str]:
    """Returns the versions that decide a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """Returns the commit of the source tree, with `-dirty` if it was changed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
