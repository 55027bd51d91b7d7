"""What is known of a data set: its files, and how they become an event log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl


@dataclass(frozen=True)
class Tables:
    """A log as lazy tables, which are written without being held in memory.

    Attributes:
      events: `user_id`, `item_id`, `event`, and `split` and `timestamp` where known.
      items: one row per item, `item_id` and features; None if there are none.
      users: one row per user, `user_id` and features; None if there are none.
    """

    events: pl.LazyFrame
    items: pl.LazyFrame | None = None
    users: pl.LazyFrame | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file (or the parts of one) as its publisher names it.

    Attributes:
      role: what the reader calls it.
      pattern: name or glob below the data folder.
      required: whether the layout can be read without it.
      parts: number of files that match when it is complete.
    """

    role: str
    pattern: str
    required: bool = True
    parts: int = 1


# Files of every role that was found, in sorted order, and a folder for
# intermediate results; both only live while the data set is converted.
Files = Mapping[str, list[Path]]
Reader = Callable[[Files, Path], Tables]


@dataclass(frozen=True)
class Layout:
    """One of the forms a data set is published in.

    Attributes:
      files: what it consists of.
      read: makes the tables; None where the files are an event log already, with
        the roles "events", "items" and "users".
    """

    files: tuple[SourceFile, ...]
    read: Reader | None


@dataclass(frozen=True)
class DataSet:
    """A registered data set.

    Attributes:
      name: what `--dataset` calls it.
      title: what people call it.
      homepage: where it is described and downloaded.
      licence: as its publisher states it; it binds whoever downloads the data.
      download: what to do to get the files, one or two sentences.
      objectives: events in cascade order, the default of `--objectives`.
      layouts: forms it is read from; the first that is complete is taken.
      folders: folders its archive unpacks to; they and the data folder itself are
        searched.
      published: rows per event its publisher reports, to tell a truncated file.
      fetch: called with the data folder if no layout is complete; may download.
      version: to be raised with every change of what a conversion leaves.
    """

    name: str
    title: str
    homepage: str
    licence: str
    download: str
    objectives: tuple[str, ...]
    layouts: tuple[Layout, ...]
    folders: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    fetch: Callable[[Path], None] | None = None
    version: int = 1

    @property
    def instructions(self) -> str:
        """What to download from where, and what the files are called."""
        forms = " or ".join(
            ", ".join(Path(file.pattern).name for file in layout.files if file.required)
            for layout in self.layouts
        )
        return (
            f"{self.title}, {self.homepage} (licence: {self.licence}). "
            f"{self.download} Expected files: {forms}."
        )
