"""An event table that is read a column and a batch of rows at a time.

Names become codes while they are read, so that a log of many million rows is never in
memory as text: per row there are four bytes per id, one per event, eight per time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl

from tfcsmf.data.scalars import as_text
from tfcsmf.errors import DataError

_BATCH = 1_000_000
# Rows that are looked at together when repeated ones are sought.
_TOGETHER = 4_000_000


class EventSource:
    """A table of any size.

    Args:
      table: a scan of files, or a table in memory.
      where: its path, named in errors.

    Attributes:
      columns: names.
      height: number of rows.
    """

    def __init__(self, table: pl.LazyFrame, where: str) -> None:
        self._table = table
        self._where = where
        with self._reading():
            self.columns = table.collect_schema().names()
            self.height = int(table.select(pl.len()).collect().item())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pl.exceptions.PolarsError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"The events table {self._where!r} cannot be read: {reason}. A file "
                "may be truncated or damaged; write it again."
            ) from error

    def column(self, name: str) -> pl.Series:
        """Returns a whole column as it is."""
        with self._reading():
            return self._table.select(name).collect(engine="streaming")[name]

    def batches(self, name: str) -> Iterator[tuple[int, pl.Series]]:
        """Yields the number of the first row, and the rows, of every batch."""
        column = self._table.select(name)
        for start in range(0, self.height, _BATCH):
            with self._reading():
                batch = column.slice(start, _BATCH).collect()[name]
            yield start, batch

    def names(self, name: str) -> pl.Series:
        """Returns a column of names as codes of its sorted distinct texts.

        Returns:
          Enum [height]; null where there is no text (`as_text`).

        Raises:
          DataError: if the column is not of a scalar type.
        """
        with self._reading():
            distinct = self._table.select(pl.col(name).unique())
            values = distinct.collect(engine="streaming")[name]
        texts = as_text(values).drop_nulls().unique().sort()
        kind = pl.Enum(texts)
        parts = [as_text(batch).cast(kind) for _, batch in self.batches(name)]
        return pl.concat(parts) if parts else pl.Series(name, [], kind)


def categories(names: pl.Series) -> pl.Series:
    """Returns the texts an Enum column may have; a code is an index."""
    kind = names.dtype
    assert isinstance(kind, pl.Enum)  # for the type checker
    return kind.categories


def distinct_events(events: pl.DataFrame) -> pl.DataFrame:
    """Drops repeated rows but for the first of each, in the order they are in.

    Args:
      events: `user_id` is an Enum. Users are looked at some at a time, because equal
        rows are of one user, and finding them takes several times their memory.
    """
    parts = -(-events.height // _TOGETHER)
    if parts <= 1:
        return events.unique(keep="first", maintain_order=True)
    users = events["user_id"].to_physical().to_numpy()
    kept = np.zeros(events.height, bool)
    columns = events.columns
    for part in range(parts):
        rows = np.flatnonzero(users % parts == part)
        mine = events[rows].with_columns(pl.Series("row", rows))
        first = mine.unique(columns, keep="first", maintain_order=False)["row"]
        kept[first.to_numpy()] = True
    return events if kept.all() else events.filter(pl.Series(kept))
