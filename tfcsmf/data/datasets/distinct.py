"""One row per key of a table that is too large to be grouped in memory."""

from __future__ import annotations

from pathlib import Path

import polars as pl

_PARTS = 64
# Rows that each of the files collects before it writes them.
_PENDING = 8192


def distinct_rows(rows: pl.LazyFrame, key: str, work: Path) -> pl.LazyFrame:
    """Keeps one row of every key, sorted by key.

    The rows are divided by the key's highest bits into files, which are read one
    after the other: a 64th of the table is in memory at a time.

    Args:
      rows: rows with the same key are alike, any of them is kept.
      key: an Int64 column whose values are spread over the whole range, as hashes
        are.
      work: an empty folder for the files, to be kept while the result is used.
    """
    width = 2**64 // _PARTS
    divided = pl.PartitionBy(
        work / "divided",
        key=(pl.col(key) // width).alias("part"),
        include_key=False,
        approximate_bytes_per_file=None,
    )
    rows.sink_parquet(divided, mkdir=True, row_group_size=_PENDING, engine="streaming")
    folders = sorted(
        (work / "divided").iterdir(), key=lambda path: int(path.name.split("=")[1])
    )
    paths = []
    for number, folder in enumerate(folders):
        part = pl.read_parquet(folder, hive_partitioning=False)
        paths.append(work / f"{number:02}.parquet")
        part.unique(key, keep="any").sort(key).write_parquet(paths[-1])
    return pl.scan_parquet(paths, hive_partitioning=False, glob=False)
