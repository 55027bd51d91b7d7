"""Loads the event log and its side tables, and checks every rule they must keep."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tfcsmf.config import Columns, Config
from tfcsmf.data.event_source import EventSource, categories, distinct_events
from tfcsmf.data.reader import read_table, scan_table
from tfcsmf.data.scalars import as_text, as_times
from tfcsmf.errors import DataError, nearest

_LOG = logging.getLogger(__name__)
_SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "eval": "valid",
    "test": "test",
}
PARTS = ("train", "valid", "test")
_SHOWN = 5  # examples and values named in a message


@dataclass(frozen=True)
class RawLog:
    """A validated log.

    Attributes:
      events: `user_id`, `item_id`, `event` (Enums of the sorted distinct names),
        `split` (Enum of "train", "valid", "test") and `time` (Int64, larger is later)
        where known; no nulls, no repeated rows.
      items: the item table, `item_id` (string, unique) first; None if not given.
      users: the user table, `user_id` (string, unique) first; None if not given.
      time_column: the column the time was read from, None if there is none.
      summary: counts and notes.
    """

    events: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    time_column: str | None
    summary: dict[str, Any] = field(default_factory=dict)


def load_log(config: Config) -> RawLog:
    """Reads the tables named in `config.data`, or simulates them.

    Raises:
      DataError: if a table cannot be read, lacks a column, holds null ids, events,
        times or unknown split values, names an entity twice, or has no event of
        an objective. The message says how to mend it.
    """
    data, columns = config.data, config.data.columns
    if data.events is None:
        for name in ("items", "users"):
            if getattr(data, name) is not None:
                raise DataError(
                    f"data.{name} needs an event log beside it. Set data.events "
                    "(--events), or leave both out to run on the simulator."
                )
        from tfcsmf.data.simulator import simulate

        _LOG.info(
            "No event log is given (--events, data.events): the built-in simulator "
            "makes one with the objectives %s.",
            " > ".join(config.cascade.objectives),
        )
        made = simulate(config.simulator, config.cascade.objectives, config.seed)
        # The simulator writes our own column names, whatever the mapping says.
        columns = Columns()
        raw = EventSource(made.events.lazy(), "simulator")
        items: pl.DataFrame | None = made.items
        users: pl.DataFrame | None = made.users
    else:
        raw = EventSource(scan_table(data.events, "events"), data.events)
        if not raw.height:
            raise DataError(
                f"The events table should have rows. Received none in {data.events!r}."
            )
        items = read_table(data.items, "items") if data.items else None
        users = read_table(data.users, "users") if data.users else None
    events, time_column = _normalise(raw, columns, data.split in ("auto", "file"))
    check_events(events, config.cascade.objectives, "cascade.objectives (--objectives)")
    check_events(events, data.history_events or (), "data.history_events")
    distinct = distinct_events(events)
    items = None if items is None else entity_table(items, columns.item_id, "item_id")
    users = None if users is None else entity_table(users, columns.user_id, "user_id")
    summary = {
        "source": "simulator" if data.events is None else data.events,
        "rows_read": raw.height,
        "duplicates_dropped": events.height - distinct.height,
        "time_column": time_column,
        "entities_without_features": {
            role: _absent(distinct, table, key)
            for role, table, key in (
                ("items", items, "item_id"),
                ("users", users, "user_id"),
            )
            if table is not None
        },
    }
    return RawLog(distinct, items, users, time_column, summary)


def check_events(events: pl.DataFrame, names: Iterable[str], option: str) -> None:
    """Checks that every name is a value of the event column.

    Raises:
      DataError: naming the nearest value and all of them with their counts.
    """
    check_names(
        dict(events["event"].value_counts(name="rows").iter_rows()), names, option
    )


def check_names(counts: Mapping[str, int], names: Iterable[str], option: str) -> None:
    """As `check_events`, from the number of rows of every event.

    Raises:
      DataError: likewise.
    """
    values = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    for name in names:
        if name not in values:
            listed = ", ".join(f"{value!r} ({n})" for value, n in values.items())
            raise DataError(
                f"{option} should name values of the event column. Received: "
                f"{name!r}.{nearest(name, values)} The column holds: {listed}."
            )


def _normalise(
    raw: EventSource, columns: Columns, use_split: bool
) -> tuple[pl.DataFrame, str | None]:
    """Renames, casts and checks the columns of the event table."""
    table = {}
    for role in ("user_id", "item_id", "event"):
        name = getattr(columns, role)
        require_column(raw.columns, name, "events", role)
        table[role] = raw.names(name)
        _no_nulls(table[role], f"Column {name!r} of the events table", "a value")
    if use_split and columns.split in raw.columns:
        table["split"] = _splits(raw.names(columns.split))
    elif use_split and columns.split != Columns().split:
        require_column(raw.columns, columns.split, "events", "split")
    time_column = next((name for name in columns.time if name in raw.columns), None)
    if time_column is not None:
        times = raw.column(time_column)
        table["time"] = as_times(times)
        _no_nulls(
            table["time"],
            f"The time column {time_column!r}",
            "a date, a number, or text such as 2024-01-31T12:00:00",
            times,
            ", or ignore the column with --set data.columns.time=[]",
        )
    elif columns.time and columns.time != Columns().time:
        require_column(raw.columns, columns.time[0], "events", "time")
    return pl.DataFrame(table), time_column


def require_column(columns: Sequence[str], name: str, source: str, role: str) -> None:
    """Checks that a table has a column.

    Raises:
      DataError: naming the nearest one, and how to map another.
    """
    if name in columns:
        return
    value = "[<column>]" if role == "time" else "<column>"
    raise DataError(
        f"The {source} table should have a column {name!r}."
        f"{nearest(name, columns)} "
        f"Received: {', '.join(map(repr, columns))}. Map another column with "
        f"--set data.columns.{role}={value}."
    )


def _no_nulls(
    values: pl.Series,
    what: str,
    rule: str,
    shown: pl.Series | None = None,
    otherwise: str = "",
) -> None:
    missing = values.is_null()
    if not missing.any():
        return
    rows = missing.arg_true().head(_SHOWN).to_list()
    raise DataError(
        f"{what} should hold {rule} in every row. Received: {missing.sum()} rows "
        f"without one; first rows: {_rows(rows, shown)} (the first row is 0). "
        f"Remove or mend these rows{otherwise}."
    )


def _rows(rows: Sequence[int], shown: pl.Series | None) -> str:
    if shown is None:
        return ", ".join(map(str, rows))
    return ", ".join(f"{row} ({shown[row]!r})" for row in rows)


def _splits(column: pl.Series) -> pl.Series:
    _no_nulls(column, f"The split column {column.name!r}", "train, valid or test")
    parts = split_names(categories(column), column.name)["part"]
    return parts.gather(column.to_physical())


def split_names(values: pl.Series, name: str) -> pl.DataFrame:
    """Reads the values of a split column.

    Args:
      values: distinct.
      name: of the column.

    Returns:
      `value`, as given, and `part`, an Enum of `PARTS`.

    Raises:
      DataError: for values that name no part.
    """
    lowered = values.str.strip_chars().str.to_lowercase()
    unknown = [value for value in lowered.unique() if value not in _SPLITS]
    if unknown:
        hint = nearest(unknown[0], _SPLITS)
        raise DataError(
            f"The split column {name!r} should hold train, valid or test. "
            f"Received: {', '.join(map(repr, sorted(unknown)[:_SHOWN]))}.{hint} "
            "To ignore the column, set data.split to time, leave_last_out or random."
        )
    parts = lowered.replace_strict(_SPLITS, return_dtype=pl.String)
    return pl.DataFrame({"value": values, "part": parts.cast(pl.Enum(PARTS))})


def entity_table(table: pl.DataFrame, name: str, role: str) -> pl.DataFrame:
    """Checks an item or user table and puts its id column first.

    Args:
      table: the rows.
      name: its id column.
      role: "item_id" or "user_id": what the column is called from here on.

    Raises:
      DataError: if the column is absent, or an id is missing or repeated.
    """
    source = role.removesuffix("_id") + "s"
    require_column(table.columns, name, source, role)
    ids = as_text(table[name]).alias(role)
    _no_nulls(ids, f"Column {name!r} of the {source} table", "an id")
    repeated = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
    if repeated.len():
        listed = ", ".join(map(repr, repeated.head(_SHOWN)))
        raise DataError(
            f"The {source} table should have one row per {name!r}. Received several "
            f"rows for {repeated.len()} ids, for example {listed}. Keep one of each."
        )
    features = table.drop(name)
    if role in features.columns:
        raise DataError(
            f"The {source} table is read by its column {name!r}, but has a column "
            f"{role!r} too. Rename or remove one of them."
        )
    return features.insert_column(0, ids)


def _absent(events: pl.DataFrame, table: pl.DataFrame | None, key: str) -> int:
    """Number of distinct ids in the log that the table does not have."""
    if table is None:
        return 0
    known = categories(events[key]).alias(key)
    warn_of_missing_rows(known, table)
    return _without_row(known, table).len()


def _without_row(ids: pl.Series, table: pl.DataFrame) -> pl.Series:
    key = table.columns[0]
    return ids.alias(key).to_frame().join(table, on=key, how="anti")[key]


def warn_of_missing_rows(ids: pl.Series, table: pl.DataFrame) -> None:
    """Says so where a table is not about most of the entities of a log.

    Args:
      ids: distinct ids of the log.
      table: as `entity_table` returned it.
    """
    missing, name = _without_row(ids, table), table.columns[0]
    if 2 * missing.len() <= ids.len():
        return
    source = name.removesuffix("_id") + "s"
    _LOG.warning(
        "%d of the %d %s of the log have no row in the %s table, for example %r; its "
        "ids are like %r. Their features are missing, and its other %s were never met: "
        "write ids alike in both tables, or leave the table out.",
        missing.len(),
        ids.len(),
        source,
        source,
        missing[0],
        table[name][0],
        source,
    )
