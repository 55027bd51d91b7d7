"""Finding a data set's files, checking their headers, and scanning them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from tfcsmf.data.datasets.spec import DataSet, Files, Layout
from tfcsmf.errors import DataError, nearest

_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".rar", ".7z", ".zst")
# Column name -> type.
Types = Mapping[str, type[pl.DataType]]
_SHOWN = 12  # names of a folder that a message lists


def locate(dataset: DataSet, data_dir: str | Path) -> tuple[Layout, Files]:
    """Finds the files of a data set.

    Args:
      dataset: which one.
      data_dir: the folder its files, or the folder of its archive, lie in.

    Raises:
      DataError: if no layout is complete; the message says what to download, where
        to put it, and what the files are called.
    """
    root = Path(data_dir)
    if root.is_dir():
        found = _search(dataset, root)
        if found is None and dataset.fetch is not None:
            dataset.fetch(root)
            found = _search(dataset, root)
        if found is not None:
            return found
    raise DataError(
        f"The data set {dataset.name!r} should lie in {str(root)!r}. "
        f"Received: {_contents(dataset, root)}. Get it first: {dataset.instructions}"
        f" Put them into {str(root)!r}{_or_folders(dataset)}."
    )


def _search(dataset: DataSet, root: Path) -> tuple[Layout, Files] | None:
    for layout in dataset.layouts:
        for folder in ("", *dataset.folders):
            files = {
                file.role: sorted((root / folder).glob(file.pattern))
                for file in layout.files
            }
            if all(
                len(files[file.role]) >= file.parts
                for file in layout.files
                if file.required
            ):
                return layout, {role: paths for role, paths in files.items() if paths}
    return None


def _contents(dataset: DataSet, root: Path) -> str:
    if not root.is_dir():
        return "no such folder"
    folders = [root / name for name in ("", *dataset.folders)]
    names = sorted(
        path.relative_to(root).as_posix()
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    )
    if not names:
        return "no files"
    more = ", ..." if len(names) > _SHOWN else ""
    listed = ", ".join(names[:_SHOWN]) + more
    packed = [name for name in names if name.lower().endswith(_ARCHIVES)]
    return f"{listed} (unpack {packed[0]} first)" if packed else listed


def _or_folders(dataset: DataSet) -> str:
    if not dataset.folders:
        return ""
    return ", or leave them in " + " or ".join(f"{name}/" for name in dataset.folders)


def first_fields(path: Path, separator: str = ",") -> list[str]:
    """Returns the fields of a text file's first line.

    Raises:
      DataError: if the file is empty.
    """
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        line = file.readline().lstrip("\ufeff").rstrip("\r\n")
    if not line:
        raise DataError(
            f"The file {str(path)!r} should have rows. Received: an empty first line. "
            "It may be truncated; download it again."
        )
    return line.split(separator)


def scan_named(
    paths: Sequence[Path],
    columns: Types,
) -> pl.LazyFrame:
    """Scans CSV files with a header; the given columns, in that order.

    Args:
      paths: files of the same columns.
      columns: name -> type. Others are not read.

    Raises:
      DataError: if a file lacks one of the columns.
    """
    for path in paths:
        header = [name.strip().strip('"') for name in first_fields(path)]
        for name in columns:
            if name not in header:
                raise DataError(
                    f"The file {str(path)!r} should have a column {name!r}."
                    f"{nearest(name, header)} Received: "
                    f"{', '.join(map(repr, header[:_SHOWN]))} ({len(header)} in all). "
                    "Check that this is the published file, unchanged."
                )
    lazy = pl.scan_csv(
        list(paths), infer_schema=False, schema_overrides=dict(columns), glob=False
    )
    return lazy.select(list(columns))


def scan_bare(
    paths: Sequence[Path],
    columns: Types,
    separator: str = ",",
) -> pl.LazyFrame:
    """Scans text files without a header and without quoting.

    Args:
      paths: files of exactly these columns.
      columns: name -> type, in file order.
      separator: one character.

    Raises:
      DataError: if the first line of a file has another number of fields.
    """
    for path in paths:
        width = len(first_fields(path, separator))
        if width != len(columns):
            raise DataError(
                f"Every line of {str(path)!r} should have the {len(columns)} fields "
                f"{', '.join(list(columns)[:_SHOWN])}. Received: {width} in the first "
                "line. Check that this is the published file, unchanged."
            )
    return pl.scan_csv(
        list(paths),
        has_header=False,
        separator=separator,
        quote_char=None,
        schema=dict(columns),
        encoding="utf8-lossy",
        glob=False,
    )


def with_levels(rows: pl.LazyFrame, levels: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """Turns rows with flags into one row per event that happened.

    Args:
      rows: what happened, one row per impression.
      levels: event -> whether the row counts as one.

    Example:
      >>> rows = pl.LazyFrame({"item_id": [7, 8], "clicked": [1, 0]})
      >>> levels = {"exposure": pl.lit(True), "click": pl.col("clicked") == 1}
      >>> with_levels(rows.select("item_id", "clicked"), levels).select(
      ...     "item_id", "event"
      ... ).collect().rows()
      [(7, 'exposure'), (7, 'click'), (8, 'exposure')]
    """
    events = [
        pl.when(happened).then(pl.lit(event)) for event, happened in levels.items()
    ]
    listed = rows.with_columns(event=pl.concat_list(events).list.drop_nulls())
    return listed.explode("event").filter(pl.col("event").is_not_null())
