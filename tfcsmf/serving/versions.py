"""The versions of one model: watching its folder, loading, swapping, freeing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tfcsmf.serving.servable import Servable
from tfcsmf.serving.status import Code, RequestError, from_exception, not_found

_LOGGER = logging.getLogger("tfcsmf.serving")
State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
# What a folder holds: path, size and time of modification (ns) of everything in it.
_Contents = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ModelOptions:
    """One model to serve.

    Attributes:
      name: the name in requests.
      base_path: folder with a numbered folder per version.
      latest: how many of the newest versions are served; 0: all of them.
      specific: if not empty, the only versions that are served.
      labels: version by label.
    """

    name: str
    base_path: Path
    latest: int = 1
    specific: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionStatus:
    """Where a version stands; a failed one is at "END" with an error."""

    state: State
    code: Code = Code.OK
    message: str = ""


class ModelVersions:
    """Serves the versions in a folder.

    A version is loaded when its folder has stopped changing, served once it is
    loaded and warm, and freed after the last request that uses it. The versions
    that were served stay until those that replace them are ready. A version that
    fails is reported and left alone until its folder changes; older ones are
    served instead.

    Args:
      options: which folder and versions.
      load: folder to a loaded and warm model.
      settle: seconds a folder has to be unchanged before it is loaded.
      on_change: called with the version numbers available, after every change.
    """

    def __init__(
        self,
        options: ModelOptions,
        load: Callable[[Path], Servable],
        settle: float = 1.0,
        on_change: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.options = options
        self._load = load
        self._settle = settle
        self._on_change = on_change
        self._lock = threading.Lock()
        self._available: dict[int, Servable] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failed: dict[int, _Contents] = {}
        self._seen: dict[int, tuple[_Contents, float]] = {}
        self._polled = False

    @property
    def ready(self) -> bool:
        """Whether a version can answer."""
        with self._lock:
            return bool(self._available)

    def acquire(self, version: int | None) -> tuple[Servable, int]:
        """Returns a held model (see `Servable.acquire`) and its version.

        Args:
          version: None for the newest that is served.

        Raises:
          RequestError: if there is none.
        """
        with self._lock:
            number = max(self._available, default=-1) if version is None else version
            servable = self._available.get(number)
            # Under the lock, so it cannot have been retired.
            if servable and servable.acquire():
                return servable, number
        name = self.options.name
        wanted = (
            f"Latest({name})" if version is None else f"Specific({name}, {version})"
        )
        raise not_found(f"Servable not found for request: {wanted}")

    def statuses(self) -> dict[int, VersionStatus]:
        """Returns the status of every version seen, newest first."""
        with self._lock:
            return dict(sorted(self._statuses.items(), reverse=True))

    def poll(self) -> None:
        """Looks at the folder and loads, swaps and frees what follows from it."""
        folders = self._folders()
        if folders is None:
            return
        wanted = self._wanted(folders)
        limit = self.options.latest or len(wanted)
        if self.options.specific:
            limit = len(wanted)
        chosen: list[int] = []
        waiting = False
        for version in wanted:
            if len(chosen) == limit:
                break
            if version in self._available:
                chosen.append(version)
                continue
            outcome = self._try(version, folders[version])
            if outcome is None:
                waiting = True
            elif outcome:
                chosen.append(version)
        # What is served stays until there is something better.
        if chosen or not (wanted and (waiting or self._failed)):
            self._retire([v for v in self._available if v not in chosen])
        for version in set(self._failed) - set(folders):
            del self._failed[version]
        for version in set(self._seen) - set(folders):
            del self._seen[version]

    def close(self) -> None:
        """Frees every version."""
        self._retire(list(self._available))

    def _folders(self) -> dict[int, Path] | None:
        """Version folders; None where the base path cannot be read at all."""
        base = self.options.base_path
        try:
            entries = sorted(entry for entry in base.iterdir() if entry.is_dir())
        except OSError as error:
            # A file system that is away for a moment is no reason to stop serving.
            _LOGGER.warning("cannot read the base path %s: %s", base, error)
            return None
        found: dict[int, Path] = {}
        for entry in entries:
            if entry.name.isascii() and entry.name.isdigit():
                found.setdefault(int(entry.name), entry)
        if not found and not self._polled:
            _LOGGER.warning(
                "no versions of %s under %s; a version is a folder named by a number, "
                "such as 1",
                self.options.name,
                base,
            )
        self._polled = True
        return found

    def _wanted(self, folders: Mapping[int, Path]) -> list[int]:
        specific = self.options.specific
        return sorted(
            (v for v in folders if not specific or v in specific), reverse=True
        )

    def _try(self, version: int, path: Path) -> bool | None:
        """Loads a version: True if it is served, False if not, None if not yet."""
        contents = _contents(path)
        if self._failed.get(version) == contents:
            return False
        if not self._has_settled(version, contents):
            self._set(version, VersionStatus("START"))
            return None
        self._set(version, VersionStatus("LOADING"))
        began = time.perf_counter()
        try:
            servable = self._load(path)
            if _contents(path) != contents:
                servable.retire()
                raise RequestError(
                    Code.ABORTED, f"{path} changed while it was being loaded"
                )
        except Exception as error:
            self._fail(version, contents, error)
            return False
        with self._lock:
            self._available[version] = servable
            self._statuses[version] = VersionStatus("AVAILABLE")
            self._failed.pop(version, None)
        _LOGGER.info(
            "serving %s version %d, loaded and warm in %.1f s",
            self.options.name,
            version,
            time.perf_counter() - began,
        )
        self._changed()
        return True

    def _has_settled(self, version: int, contents: _Contents) -> bool:
        now = time.time()
        known, since = self._seen.get(version, (None, now))
        if known != contents:
            since = now
        self._seen[version] = (contents, since)
        newest = max((modified for _, _, modified in contents), default=0) / 1e9
        # The clocks of file servers differ: a time in the future says nothing.
        old = newest < now - 2 * self._settle
        return old or now - since >= self._settle

    def _fail(self, version: int, contents: _Contents, error: Exception) -> None:
        reason = from_exception(error)
        self._failed[version] = contents
        _LOGGER.error(
            "FAILED to load %s version %d: %s", self.options.name, version, reason
        )
        self._set(version, VersionStatus("END", reason.code, reason.message))

    def _set(self, version: int, status: VersionStatus) -> None:
        with self._lock:
            self._statuses[version] = status

    def _retire(self, versions: list[int]) -> None:
        for version in versions:
            with self._lock:
                servable = self._available.pop(version)
                self._statuses[version] = VersionStatus("END")
            servable.retire()
            _LOGGER.info("no longer serving %s %d", self.options.name, version)
        if versions:
            self._changed()

    def _changed(self) -> None:
        if self._on_change:
            with self._lock:
                versions = sorted(self._available)
            self._on_change(versions)


def _contents(path: Path) -> _Contents:
    found: list[tuple[str, int, int]] = []
    for folder, _, names in os.walk(path):
        for name in ["", *names]:
            place = os.path.join(folder, name)
            try:
                about = os.stat(place)
            except OSError:
                continue  # gone in between: the next look will differ
            found.append((place, about.st_size, about.st_mtime_ns))
    return tuple(sorted(found))
