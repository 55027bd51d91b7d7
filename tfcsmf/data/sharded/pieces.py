"""Reads an event log in Parquet a piece at a time, and deals users out to shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from tfcsmf.config import Columns, Config
from tfcsmf.data.log import PARTS, require_column, split_names
from tfcsmf.data.reader import find_files, folder_columns, with_constants
from tfcsmf.data.scalars import as_text, as_times
from tfcsmf.data.splits import SPLIT_CODES, mix, stable_keys
from tfcsmf.errors import DataError

_BATCH = 500_000  # rows that are in memory together while a piece is read


@dataclass(frozen=True)
class Source:
    """Where a log's columns are.

    Attributes:
      pieces: all of them, in the order of the log.
      split: column with the parts, `None` without one that is used.
      time: column with the times, `None` without one.
      rows: of the log.
    """

    pieces: tuple[Piece, ...]
    split: str | None
    time: str | None
    rows: int


@dataclass(frozen=True)
class Piece:
    """One row group of a file.

    Attributes:
      path: of the file.
      group: number of the row group.
      first: number of its first row in the log.
      given: a row of what the names of its folders say; `None` if nothing.
    """

    path: str
    group: int
    first: int
    given: pl.DataFrame | None = field(default=None, compare=False)


def find_source(config: Config) -> Source:
    """Looks at the ends of a log's files.

    Raises:
      DataError: if it is not all Parquet, lacks a column, is empty, or has times that
        only all rows together could tell how to read.
    """
    data = config.data
    if data.events is None:
        raise DataError(
            "Preparation in shards needs an event log. Received none: set data.events "
            "(--events)."
        )
    pieces, rows = [], 0
    files = find_files(data.events, "events")
    folders = folder_columns(files, data.events)
    for number, file in enumerate(files):
        if not file.lower().endswith((".parquet", ".pq")):
            raise DataError(
                "Preparation in shards reads Parquet, whose columns have types. "
                f"Received: {file!r}. Write the log as Parquet first."
            )
        try:
            footer = pq.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The events file {file!r} cannot be read as Parquet: {error}. It may "
                "be truncated or damaged; write it again."
            ) from error
        columns = [*footer.schema_arrow.names, *folders.columns]
        given = folders[number] if folders.width else None
        for role in ("user_id", "item_id", "event"):
            require_column(columns, getattr(data.columns, role), "events", role)
        for group in range(footer.metadata.num_row_groups):
            pieces.append(Piece(file, group, rows, given))
            rows += footer.metadata.row_group(group).num_rows
    if not rows:
        raise DataError(
            f"The events table should have rows. Received none in {data.events!r}."
        )
    columns = [*pq.ParquetFile(files[0]).schema_arrow.names, *folders.columns]
    wanted = data.columns.split
    split = wanted if data.split in ("auto", "file") and wanted in columns else None
    if split is None and data.split in ("auto", "file") and wanted != Columns().split:
        require_column(columns, wanted, "events", "split")
    time = next((name for name in data.columns.time if name in columns), None)
    if time is None and data.columns.time and data.columns.time != Columns().time:
        require_column(columns, data.columns.time[0], "events", "time")
    return Source(tuple(pieces), split, time, rows)


def read_piece(piece: Piece, source: Source, config: Config) -> Iterator[pl.DataFrame]:
    """Yields the rows of a piece, checked, some at a time.

    Yields:
      `row` (number in the log), `user_id`, `item_id`, `event` (text), `split` (code)
      and `time` (Int64) where known.

    Raises:
      DataError: for null ids, events or times, and unknown parts.
    """
    columns = config.data.columns
    names = [columns.user_id, columns.item_id, columns.event]
    wanted = [*names, *(name for name in (source.split, source.time) if name)]
    first = piece.first
    file = pq.ParquetFile(piece.path)
    own = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
    for batch in file.iter_batches(_BATCH, row_groups=[piece.group], columns=own):
        read = pl.DataFrame(batch)
        if piece.given is not None:
            read = with_constants(read, piece.given)
        table = {
            role: as_text(read[name])
            for role, name in zip(("user_id", "item_id", "event"), names, strict=True)
        }
        if source.split:
            text = as_text(read[source.split])
            _check_filled(text, source.split, piece, first)
            table["split"] = _split_codes(text)
        if source.time:
            table["time"] = _times(read[source.time])
        frame = pl.DataFrame(table)
        for role, name in zip((*table,), wanted, strict=True):
            _check_filled(frame[role], name, piece, first)
        rows = np.arange(first, first + frame.height)
        yield frame.insert_column(0, pl.Series("row", rows))
        first += frame.height


def _times(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if kind.is_integer() or kind == pl.Date or kind.base_type() == pl.Datetime:
        return as_times(column)
    raise DataError(
        "Preparation in shards reads times that are whole numbers, dates or datetimes. "
        f"Received: {column.name!r} of type {kind}. Write the log with such a column."
    )


def _split_codes(text: pl.Series) -> pl.Series:
    parts = split_names(text.unique(), text.name)
    codes = [SPLIT_CODES[PARTS[part]] for part in parts["part"].to_physical()]
    return text.replace_strict(
        parts["value"], pl.Series(codes, dtype=pl.Int8), return_dtype=pl.Int8
    )


def _check_filled(values: pl.Series, name: str, piece: Piece, first: int) -> None:
    missing = values.is_null()
    if missing.any():
        row = first + int(missing.arg_true()[0])
        raise DataError(
            f"Column {name!r} of the events table should hold a value in every row. "
            f"Received: {missing.sum()} rows without one in {piece.path!r}; the first "
            f"is row {row} of the log (the first row is 0). Remove or mend these rows."
        )


def shards_of(ids: pl.Series, shards: int) -> pl.Series:
    """Returns the shard of every user: a number that depends on nothing but the id."""
    distinct = ids.unique()
    numbers = mix(stable_keys(distinct)) % np.uint64(shards)
    return ids.replace_strict(distinct, pl.Series(numbers.astype(np.int32)))
