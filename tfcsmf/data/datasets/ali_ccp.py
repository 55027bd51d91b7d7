r"""Ali-CCP: impressions, clicks and purchases in Taobao's recommendations.

As published, `sample_skeleton_*.csv` has a row per impression: sample id, click,
purchase, index of the common features, number of features, features. These are
`field \x02 feature \x03 value`, joined by \x01. `common_features_*.csv` has index,
number of features and features of a user, shared by the impressions of a request.

The flat form is one CSV per split with a header (`click,purchase,101,...`), in which
every field holds a code. Code 0 stands for all values that were too rare for a code of
their own, so rows whose item is 0 are left out.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tfcsmf.data.datasets.sources import Types, scan_bare, scan_named, with_levels
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, SourceFile, Tables

# Fields of the data set's description. Not used: the user's behaviour of 14 days
# (109_14, 110_14, 127_14, 150_14), which histories of the log replace, features of
# user and item together (508, 509, 702, 853), and the context (301).
_USER_ID, _ITEM_ID = "101", "205"
_USER = tuple(str(field) for field in (121, 122, 124, 125, 126, 127, 128, 129))
_ITEM = {"206": "category", "207": "shop", "210": "intention", "216": "brand"}

_SKELETON = {
    "sample": pl.String,
    "click": pl.Int8,
    "purchase": pl.Int8,
    "common": pl.String,
    "count": pl.Int64,
    "features": pl.String,
}
_COMMON = {"common": pl.String, "count": pl.Int64, "features": pl.String}
# A few rows have a purchase without a click, which is no path through the cascade.
_LEVELS = {
    "exposure": pl.lit(True),
    "click": pl.col("click") == 1,
    "purchase": (pl.col("click") == 1) & (pl.col("purchase") == 1),
}


def _feature(field: str) -> pl.Expr:
    """The feature of a field in a list of features, null if it has none."""
    pattern = rf"(?:^|\x01){field}\x02([^\x03]*)\x03"
    return pl.col("features").str.extract(pattern)


def _read_published(files: Files, work: Path) -> Tables:
    rows, users = [], []
    for split in ("train", "test"):
        common = scan_bare(files[f"common_{split}"], _COMMON)
        common = common.select(
            "common",
            _feature(_USER_ID).cast(pl.Int64).alias("user_id"),
            *(_feature(field).alias(f"user_{field}") for field in _USER),
        )
        # Parsed once: the rows are long, and needed for the events and the users.
        path = work / f"common_{split}.parquet"
        common.sink_parquet(path, engine="streaming")
        parsed = pl.scan_parquet(path)
        skeleton = scan_bare(files[f"skeleton_{split}"], _SKELETON)
        skeleton = skeleton.select(
            "common",
            "click",
            "purchase",
            _feature(_ITEM_ID).cast(pl.Int64).alias("item_id"),
            *(_feature(field).alias(name) for field, name in _ITEM.items()),
        )
        owners = parsed.select("common", "user_id")
        joined = skeleton.join(owners, on="common", how="left", maintain_order="left")
        rows.append(joined.with_columns(split=pl.lit(split)))
        users.append(parsed)
    return _tables(pl.concat(rows), pl.concat(users))


def _read_flat(files: Files, work: Path) -> Tables:
    columns: Types = {
        **{"click": pl.Int8, "purchase": pl.Int8},
        **{_USER_ID: pl.Int64, _ITEM_ID: pl.Int64},
        **dict.fromkeys((*_USER, *_ITEM), pl.String),
    }
    names = {_USER_ID: "user_id", _ITEM_ID: "item_id"} | _ITEM
    names |= {field: f"user_{field}" for field in _USER}
    parts = [
        scan_named(files[role], columns).with_columns(split=pl.lit(split))
        for role, split in (("train", "train"), ("val", "valid"), ("test", "test"))
        if role in files
    ]
    rows = pl.concat(parts).rename(names).filter(pl.col("item_id") != 0)
    return _tables(rows, rows)


def _tables(rows: pl.LazyFrame, owners: pl.LazyFrame) -> Tables:
    events = with_levels(rows, _LEVELS).select("user_id", "item_id", "event", "split")
    # The smallest where rows differ: any other choice would depend on their order.
    items = rows.group_by("item_id").agg(pl.col(list(_ITEM.values())).min())
    users = owners.group_by("user_id").agg(
        pl.col([f"user_{field}" for field in _USER]).min()
    )
    return Tables(events, items.sort("item_id"), users.sort("user_id"))


ALI_CCP = DataSet(
    name="ali_ccp",
    title="Alibaba Click and Conversion Prediction (Ali-CCP)",
    homepage="https://tianchi.aliyun.com/dataset/408",
    licence="as on its Tianchi page, to be accepted there",
    download=(
        "Log in to Tianchi, accept the licence, download sample_train.tar.gz and "
        "sample_test.tar.gz and unpack both."
    ),
    objectives=("exposure", "click", "purchase"),
    layouts=(
        Layout(
            tuple(
                SourceFile(f"{kind}_{split}", f"**/{name}_{split}.csv")
                for split in ("train", "test")
                for kind, name in (
                    ("skeleton", "sample_skeleton"),
                    ("common", "common_features"),
                )
            ),
            _read_published,
        ),
        Layout(
            (
                SourceFile("train", "ali_ccp_train*.csv"),
                SourceFile("val", "ali_ccp_val*.csv", False),
                SourceFile("test", "ali_ccp_test*.csv"),
            ),
            _read_flat,
        ),
    ),
    folders=("ali_ccp", "ali-ccp", "ali_ccp_sample"),
)
