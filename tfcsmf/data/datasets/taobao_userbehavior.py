"""UserBehavior.csv: a week of views, carts, favourites and purchases on Taobao."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tfcsmf.data.datasets.sources import scan_bare
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, SourceFile, Tables

_COLUMNS = {
    "user_id": pl.Int64,
    "item_id": pl.Int64,
    "category": pl.String,
    "event": pl.String,
    "timestamp": pl.Int64,
}
# The days the log is published for, 2017-11-25 to 2017-12-03 in China. Some rows lie
# years away, which would leave a split by time with next to nothing.
_FIRST, _LAST = 1_511_539_200, 1_512_316_799


def _read(files: Files, work: Path) -> Tables:
    rows = scan_bare(files["log"], _COLUMNS)
    time = pl.col("timestamp")
    # Rows without a time stay: they are a sign of damage, and are refused later.
    events = rows.filter(time.is_between(_FIRST, _LAST) | time.is_null())
    items = rows.group_by("item_id").agg(pl.col("category").min()).sort("item_id")
    return Tables(events.drop("category"), items)


TAOBAO_USERBEHAVIOR = DataSet(
    name="taobao_userbehavior",
    title="User Behavior Data from Taobao for Recommendation",
    homepage="https://tianchi.aliyun.com/dataset/649",
    licence="CC BY-NC-SA 4.0",
    download=(
        "Log in to Tianchi, accept the licence, download UserBehavior.csv.zip and "
        "unzip it."
    ),
    objectives=("pv", "cart", "buy"),
    layouts=(Layout((SourceFile("log", "UserBehavior.csv"),), _read),),
    # Of all rows, the few outside of the published days included.
    published={
        "pv": 89_716_264,
        "cart": 5_530_446,
        "fav": 2_888_258,
        "buy": 2_015_839,
    },
)
