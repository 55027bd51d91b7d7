"""Reads a table from Parquet or CSV: one file, a folder, or a glob."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import unquote

import polars as pl

from tfcsmf.errors import DataError

_KINDS = {".parquet": "Parquet", ".pq": "Parquet", ".csv": "CSV", ".csv.gz": "CSV"}
# Integers and decimals as a computer writes them. "007" stays text: the same id
# in another file would otherwise no longer match.
_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
_DECIMAL = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$|^-?(?i:nan|inf)$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
# What Hive and Spark call a folder of missing values.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

_Table = TypeVar("_Table", pl.DataFrame, pl.LazyFrame)


def read_table(path: str, role: str) -> pl.DataFrame:
    """Reads all rows of a table.

    Args:
      path: a Parquet or CSV file (also .csv.gz), a folder of them (searched
        recursively, names starting with "_" or "." left out), or a glob. Files
        are read in sorted order. Empty CSV fields are missing values; CSV
        columns become integers, decimals or dates where every value is one. So do
        columns that only the names of folders give (`folder_columns`).
      role: what the table is for, named in errors: "events", "items", "users".

    Raises:
      DataError: if nothing is found, a file cannot be read, the files differ in
        kind or columns, or there are no rows.
    """
    files = find_files(path, role)
    kinds = {_kind(file, role) for file in files}
    if len(kinds) > 1:
        raise DataError(
            f"The {role} table should be all Parquet or all CSV. Received both under "
            f"{path!r}. Name one kind with a glob such as '{path}/*.parquet'."
        )
    kind = kinds.pop()
    frames = [_read(file, kind, role) for file in files]
    table = _join(_completed(frames, files, path), files, role)
    if table.height == 0:
        raise DataError(
            f"The {role} table should have rows. Received none in {path!r}."
        )
    if kind == "CSV":
        table = table.select(_infer(table[name]) for name in table.columns)
    return table


def scan_table(path: str, role: str) -> pl.LazyFrame:
    """As `read_table`, but Parquet files are only looked at, and read later.

    Raises:
      DataError: as `read_table`, as far as the files' ends can tell.
    """
    files = find_files(path, role)
    if {_kind(file, role) for file in files} != {"Parquet"}:
        return read_table(path, role).lazy()
    heads = [_read(file, "Parquet", role, rows=0) for file in files]
    _join(_completed(heads, files, path), files, role)
    scans = _completed(
        [pl.scan_parquet(file, glob=False, hive_partitioning=False) for file in files],
        files,
        path,
    )
    columns = scans[0].collect_schema().names()
    return pl.concat([scan.select(columns) for scan in scans], how="vertical_relaxed")


def find_files(path: str, role: str) -> list[str]:
    """Returns the files of a table, sorted; see `read_table`.

    Raises:
      DataError: if there are none.
    """
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        files = _walk(path)
        if not files:
            raise DataError(
                f"The {role} folder should hold .parquet or .csv files. "
                f"Received: {path!r}, which holds none."
            )
        return files
    matches = sorted(glob.glob(path, recursive=True))
    files = [
        file
        for match in matches
        for file in (_walk(match) if os.path.isdir(match) else [match])
    ]
    if not files:
        raise DataError(
            f"The {role} table should be a file, a folder or a glob that exists. "
            f"Received: {path!r}. Current folder: {os.getcwd()!r}."
        )
    return sorted(set(files))


def folder_columns(files: Sequence[str], path: str) -> pl.DataFrame:
    """Returns the columns that Hive and Spark keep in the names of folders.

    Args:
      files: of a table.
      path: what they were found by. Folders below it, or from its first wildcard on,
        are looked at, such as `date=2024-01-31/part-0.parquet`.

    Returns:
      A row per file, with columns of the type that all values have, as in a CSV; no
      columns where folders have no such names. Null where a file is in no such folder.
    """
    if os.path.isfile(path):
        return pl.DataFrame()
    root = path
    if not os.path.isdir(path):
        root = os.path.dirname(re.split(r"[*?\[]", path)[0])
    rows = []
    for file in files:
        folders = os.path.dirname(os.path.relpath(file, root or ".")).split(os.sep)
        named = (name.partition("=") for name in folders if "=" in name)
        rows.append({name: unquote(value) for name, _, value in named if name})
        rows[-1] = {k: v for k, v in rows[-1].items() if v != _HIVE_NULL}
    names = dict.fromkeys(name for row in rows for name in row)
    table = pl.DataFrame(
        {
            name: pl.Series([row.get(name) for row in rows], dtype=pl.String)
            for name in names
        }
    )
    return table.select(_infer(table[name]) for name in table.columns)


def _completed(
    tables: Sequence[_Table], files: Sequence[str], path: str
) -> list[_Table]:
    given = folder_columns(files, path)
    if not given.width:
        return list(tables)
    return [with_constants(table, given[n]) for n, table in enumerate(tables)]


def with_constants(table: _Table, row: pl.DataFrame) -> _Table:
    """Adds the values of one row as columns; what the table has goes first."""
    own = table.collect_schema().names()
    return table.with_columns(
        pl.lit(column[0], column.dtype).alias(column.name)
        for column in row
        if column.name not in own
    )


def _walk(folder: str) -> list[str]:
    """All visible files below a folder that have a known extension, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in "_."]
        found += [
            os.path.join(parent, name)
            for name in names
            if name[0] not in "_." and _extension(name) in _KINDS
        ]
    return sorted(found)


def _extension(name: str) -> str:
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


def _kind(file: str, role: str) -> str:
    extension = _extension(os.path.basename(file))
    if extension not in _KINDS:
        raise DataError(
            f"The {role} table should be one of {', '.join(_KINDS)}. "
            f"Received: {file!r} (extension {extension!r})."
        )
    return _KINDS[extension]


def _read(file: str, kind: str, role: str, rows: int | None = None) -> pl.DataFrame:
    try:
        if os.path.getsize(file) == 0:
            raise DataError(f"The {role} file {file!r} is empty.")
        if kind == "Parquet":
            return pl.read_parquet(
                file, n_rows=rows, glob=False, hive_partitioning=False
            )
        table = pl.read_csv(file, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        cause = "It may be truncated or damaged; write it again"
        if "utf-8" in reason:
            cause = "Write it again in UTF-8"
        raise DataError(
            f"The {role} file {file!r} cannot be read as {kind}: {reason}. {cause}."
        ) from error
    if table.width == 1 and re.search(r"[;\t|]", table.columns[0]):
        raise DataError(
            f"The {role} file {file!r} should have commas between its columns. "
            f"Received: the header {table.columns[0]!r}. Write it with commas, or as "
            "Parquet."
        )
    return table


def _join(frames: list[pl.DataFrame], files: list[str], role: str) -> pl.DataFrame:
    columns = frames[0].columns
    for frame, file in zip(frames[1:], files[1:], strict=True):
        differing = set(columns) ^ set(frame.columns)
        if differing:
            raise DataError(
                f"All files of the {role} table should have the same columns. "
                f"{file!r} and {files[0]!r} differ in {sorted(differing)}."
            )
    if len(frames) == 1:
        return frames[0]
    try:
        return pl.concat(
            [frame.select(columns) for frame in frames], how="vertical_relaxed"
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"All files of the {role} table should have the same column types: {reason}"
        ) from error


def _infer(column: pl.Series) -> pl.Series:
    """Gives a column of texts the type that all of its values have."""
    if column.dtype != pl.String or column.null_count() == len(column):
        return column
    # A glance at the start spares most text columns the full search.
    for sample in (column.head(1000), column):
        if sample.str.contains(_INTEGER).all():
            target: type[pl.DataType] = pl.Int64
        elif sample.str.contains(_DECIMAL).all():
            target = pl.Float64
        elif sample.str.contains(_DATE).all():
            target = pl.Date
        else:
            return column
    try:
        if target is pl.Date:
            return column.str.to_date("%Y-%m-%d")
        return column.cast(target)
    except pl.exceptions.PolarsError:
        return column  # digits in the shape of a date, such as 2024-13-40
