"""AliExpress: impressions, clicks and purchases of its search, in five countries.

The data name no users and no items. What stands for them here:

- user: the result page (`search_id`), with the user's and the query's features. Pages
  are numbered per file, so the file's split is part of the name. No page of the test
  file is met in training: such users have features, but no history.
- item: a 64-bit hash of all 47 values that the item file gives for a row, decimals to
  six places. Rows that agree in all of them are one item. As some of these values are
  statistics that change over time, or say how well item and query match, one product
  can be several items here; none of them is ever two products that differ in a value.

Two forms are read: the files of the publisher, which have no header, and `train.csv`
and `test.csv`, to which the preprocessing script of MTReclib (github.com/easezyc/
Multitask-Recommendation-Library) joins them. Columns have the names of the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from tfcsmf.data.datasets.distinct import distinct_rows
from tfcsmf.data.datasets.sources import scan_bare, scan_named, with_levels
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, SourceFile, Tables
from tfcsmf.data.splits import mix

_DECIMALS = 1e6
# Places of the categorical values in the item file; the first field is the page, the
# last one the label: 0 nothing, 1 clicked, 2 clicked and bought.
_ITEM_CODES = (19, 34, 35, 36, 40, 41, 42)


def _columns(kind: str, first: int, last: int) -> list[str]:
    return [f"{kind}_{number}" for number in range(first, last + 1)]


_USER_CODED, _USER_NUMBERS = _columns("categorical", 1, 9), _columns("numerical", 1, 23)
_ITEM_CODED, _ITEM_NUMBERS = (
    _columns("categorical", 10, 16),
    _columns("numerical", 24, 63),
)
_TYPES = dict.fromkeys(_USER_CODED + _ITEM_CODED, pl.Int64) | dict.fromkeys(
    _USER_NUMBERS + _ITEM_NUMBERS, pl.Float64
)


def _user_file() -> list[str]:
    """Names of the user file's 33 fields."""
    return [
        "search_id",
        *_USER_CODED[:7],
        *_USER_NUMBERS,
        *_USER_CODED[7:],
    ]


def _item_file() -> list[str]:
    """Names of the item file's 49 fields."""
    coded, numbers = iter(_ITEM_CODED), iter(_ITEM_NUMBERS)
    middle = [
        next(coded if place in _ITEM_CODES else numbers) for place in range(2, 49)
    ]
    return ["search_id", *middle, "label"]


def item_keys(columns: Sequence[pl.Series]) -> pl.Series:
    """Hashes the item columns of rows to whole numbers.

    Args:
      columns: `categorical_10` to `categorical_16`, `numerical_24` to
        `numerical_63`, all without nulls.

    Returns:
      Int64 [n]; equal where all values are, decimals to six places.
    """
    keys = []
    for column in columns:
        values = column.to_numpy()
        if values.dtype.kind == "f":
            values = np.round(values * _DECIMALS)
        keys.append(values.astype(np.int64))
    return pl.Series(mix(*keys).view(np.int64))


def _keyed(rows: pl.LazyFrame, split: str) -> pl.LazyFrame:
    """Names the user and the item of every row."""
    given = pl.struct(_ITEM_CODED + _ITEM_NUMBERS)
    return rows.with_columns(
        _page(split),
        given.map_batches(
            lambda batch: item_keys(batch.struct.unnest().get_columns()),
            return_dtype=pl.Int64,
            is_elementwise=True,
        ).alias("item_id"),
        split=pl.lit(split),
    )


def _page(split: str) -> pl.Expr:
    return pl.format("{}_{}", pl.lit(split), "search_id").alias("user_id")


def _read_joined(files: Files, work: Path) -> Tables:
    types = {"search_id": pl.Int64} | _TYPES | {"click": pl.Int8, "conversion": pl.Int8}
    rows = pl.concat(
        [_keyed(scan_named(files[split], types), split) for split in ("train", "test")]
    )
    # All rows of a page give the same values.
    users = rows.group_by("user_id").agg(pl.col(_USER_CODED + _USER_NUMBERS).min())
    return _tables(rows, users.sort("user_id"), work)


def _read_published(files: Files, work: Path) -> Tables:
    rows, users = [], []
    for split in ("train", "test"):
        types = {"search_id": pl.Int64, "label": pl.Int8} | _TYPES
        item = {name: types[name] for name in _item_file()}
        user = {name: types[name] for name in _user_file()}
        part = scan_bare(files[f"item_{split}"], item)
        rows.append(
            _keyed(part, split).with_columns(
                click=pl.col("label").clip(0, 1), conversion=pl.col("label") // 2
            )
        )
        users.append(scan_bare(files[f"user_{split}"], user).with_columns(_page(split)))
    return _tables(pl.concat(rows), pl.concat(users), work)


def _tables(rows: pl.LazyFrame, users: pl.LazyFrame, work: Path) -> Tables:
    levels = {
        "exposure": pl.lit(True),
        "click": pl.col("click") == 1,
        "conversion": pl.col("conversion") == 1,
    }
    events = with_levels(rows, levels).select("user_id", "item_id", "event", "split")
    items = rows.select("item_id", *_features(_ITEM_CODED, _ITEM_NUMBERS))
    return Tables(
        events,
        # Nearly as many as rows.
        distinct_rows(items, "item_id", work),
        users.select("user_id", *_features(_USER_CODED, _USER_NUMBERS)),
    )


def _features(coded: list[str], numbers: list[str]) -> list[pl.Expr]:
    """Codes as text, or those of many values would pass for numbers."""
    return [pl.col(coded).cast(pl.String), pl.col(numbers).cast(pl.Float32)]


def _aliexpress(country: str) -> DataSet:
    upper = country.upper()
    return DataSet(
        name=f"aliexpress_{country}",
        title=f"AliExpress Searching System Dataset ({upper})",
        homepage="https://tianchi.aliyun.com/dataset/74690",
        licence="as on its Tianchi page, to be accepted there",
        download=(
            f"Log in to Tianchi, accept the licence, download aliexpress_{upper}_"
            "datasets.zip and unzip it and the four archives inside."
        ),
        objectives=("exposure", "click", "conversion"),
        layouts=(
            Layout(
                tuple(
                    SourceFile(f"{side}_{split}", f"{country}_{side}_{split}.csv")
                    for split in ("train", "test")
                    for side in ("user", "item")
                ),
                _read_published,
            ),
            Layout(
                (SourceFile("train", "train.csv"), SourceFile("test", "test.csv")),
                _read_joined,
            ),
        ),
        folders=(f"AliExpress_{upper}", f"aliexpress_{upper}_datasets"),
    )


ALIEXPRESS = tuple(_aliexpress(country) for country in ("nl", "es", "fr", "us", "ru"))
