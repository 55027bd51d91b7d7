"""Converts a data set to Parquet once, and finds the result again."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tfcsmf.data.datasets.sources import locate
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, Tables
from tfcsmf.errors import DataError, TfcsmfError
from tfcsmf.files import atomic_directory, write_atomic

_LOG = logging.getLogger(__name__)
_TABLES = ("events", "items", "users")
# A count this far from the published one is worth a warning.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class LogFiles:
    """Where the tables of a data set are.

    Attributes:
      events: the event log, Parquet.
      items: the item table; None if the data set has none.
      users: the user table; None if the data set has none.
      objectives: events in cascade order.
    """

    events: Path
    items: Path | None
    users: Path | None
    objectives: tuple[str, ...]


def convert(
    dataset: DataSet, data_dir: str | Path, cache_dir: str | Path | None = None
) -> LogFiles:
    """Makes the event log of a data set, or finds the one made before.

    An earlier result is used if name, size and modification time of every source
    file and the version of the conversion are the same. Files that are an event log
    already are used where they are.

    Args:
      dataset: which one.
      data_dir: the folder with its files.
      cache_dir: where results are kept; `tfcsmf-cache` in the data folder if None.

    Raises:
      DataError: if files are missing or are not what they should be, or the cache
        folder cannot be written.
    """
    layout, files = locate(dataset, data_dir)
    if layout.read is None:
        found = {name: files[name][0] if name in files else None for name in _TABLES}
        return _log_files(dataset, found)
    sources = _describe(files, Path(data_dir))
    target = Path(cache_dir or Path(data_dir) / "tfcsmf-cache")
    target = target / f"{dataset.name}-{_fingerprint(dataset, sources)}"
    if not target.is_dir():
        _LOG.info("Converting %s to %s (once).", dataset.title, target)
        _make(dataset, layout, files, sources, target)
    tables = {name: target / f"{name}.parquet" for name in _TABLES}
    return _log_files(
        dataset,
        {name: path if path.exists() else None for name, path in tables.items()},
    )


def _log_files(dataset: DataSet, paths: dict[str, Path | None]) -> LogFiles:
    assert paths["events"] is not None  # every layout requires it
    return LogFiles(paths["events"], paths["items"], paths["users"], dataset.objectives)


def _describe(files: Files, root: Path) -> list[dict[str, Any]]:
    """What a later run compares to tell whether a source has changed."""
    described = []
    for role, paths in sorted(files.items()):
        for path in paths:
            state = path.stat()
            described.append(
                {
                    "role": role,
                    "path": path.relative_to(root).as_posix(),
                    "bytes": state.st_size,
                    "modified_ns": state.st_mtime_ns,
                }
            )
    return described


def _fingerprint(dataset: DataSet, sources: list[dict[str, Any]]) -> str:
    content = json.dumps([dataset.name, dataset.version, sources])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _make(
    dataset: DataSet,
    layout: Layout,
    files: Files,
    sources: list[dict[str, Any]],
    target: Path,
) -> None:
    assert layout.read is not None  # `convert`
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".work-", dir=target.parent) as work,
            atomic_directory(target) as folder,
        ):
            tables = layout.read(files, Path(work))
            rows = _write(tables, folder)
            events = _check(dataset, folder / "events.parquet")
            note = {
                "dataset": dataset.name,
                "version": dataset.version,
                "homepage": dataset.homepage,
                "licence": dataset.licence,
                "sources": sources,
                "rows": rows,
                "events": events,
            }
            write_atomic(folder / "source.json", json.dumps(note, indent=1) + "\n")
    except PermissionError as error:
        raise DataError(
            f"The folder {str(target.parent)!r} should be writable: the converted data "
            f"set is kept there. Received: {error}. Name another one with --cache-dir."
        ) from error
    except pl.exceptions.PolarsError as error:
        names = ", ".join(repr(source["path"]) for source in sources)
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise DataError(
            f"The files of {dataset.name!r} should be as published. Received: {names}, "
            f"in which reading failed: {reason}. A file may be truncated or changed; "
            "download it again."
        ) from error
    except TfcsmfError:
        # Another process may have finished the same conversion a moment earlier.
        if not target.is_dir():
            raise


def _write(tables: Tables, folder: Path) -> dict[str, int]:
    """Writes every table batch by batch; returns their numbers of rows."""
    rows = {}
    for name in _TABLES:
        lazy = getattr(tables, name)
        if lazy is None:
            continue
        path = folder / f"{name}.parquet"
        lazy.sink_parquet(path, engine="streaming")
        rows[name] = pl.scan_parquet(path).select(pl.len()).collect().item()
    return rows


def _check(dataset: DataSet, path: Path) -> dict[str, int]:
    """Checks ids, and events against what is published; returns rows per event."""
    scan = pl.scan_parquet(path)
    columns = [name for name in scan.collect_schema().names() if name != "event"]
    counts = (
        scan.group_by("event")
        .agg(pl.len().alias("rows"), pl.col(columns).null_count())
        .sort("rows", "event", descending=[True, False])
        .collect(engine="streaming")
    )
    if counts.is_empty():
        raise DataError(
            f"The data set {dataset.name!r} should have events. Received: none. Its "
            "files may be truncated; download them again."
        )
    nameless = counts.filter(pl.col("event").is_null())["rows"].sum()
    absent = {"event": nameless} | {name: counts[name].sum() for name in columns}
    for name, missing in absent.items():
        if missing:
            raise DataError(
                f"Every event of {dataset.name!r} should have a {name}. Received: "
                f"{missing} of {counts['rows'].sum()} without one. The files may be "
                "truncated or of different versions; download them again."
            )
    events = {str(event): int(rows) for event, rows in counts["event", "rows"].rows()}
    _compare(dataset, events)
    return events


def _compare(dataset: DataSet, events: dict[str, int]) -> None:
    """Warns of counts far from the published ones."""
    differing = [
        f"{events.get(event, 0):,} {event!r} (of {expected:,})"
        for event, expected in dataset.published.items()
        if abs(events.get(event, 0) - expected) > _TOLERANCE * expected
    ]
    if differing:
        _LOG.warning(
            "%s is published with other numbers of events than these files have: %s. "
            "They are a sample, or truncated.",
            dataset.title,
            ", ".join(differing),
        )
