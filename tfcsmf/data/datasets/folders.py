"""Folders that hold an event log in our own schema already."""

from __future__ import annotations

from tfcsmf.data.datasets.spec import DataSet, Layout, SourceFile


def _folder(name: str, title: str, source: str, licence: str, *events: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        homepage=source,
        licence=licence,
        download=(
            "Write its events, items and users as Parquet with the columns of "
            "docs/data.md."
        ),
        objectives=events,
        layouts=(
            Layout(
                (
                    SourceFile("events", "events.parquet"),
                    SourceFile("items", "items.parquet", False),
                    SourceFile("users", "users.parquet", False),
                ),
                None,
            ),
        ),
        folders=(name,),
    )


_UNKNOWN = "none stated: for research only, not to be republished"

FOLDERS = (
    _folder(
        "taobao",
        "Taobao as used by MB-CGCN and MuLe",
        "https://github.com/SS-00-SS/MBCGCN",
        _UNKNOWN,
        *("view", "cart", "buy"),
    ),
    _folder(
        "ecomm",
        "Ecomm of DyHATR",
        "https://github.com/xuehansheng/DyHATR",
        "MIT",
        *("click", "collect", "cart", "buy"),
    ),
    _folder(
        "beauty",
        "Amazon Beauty as used by S3-Rec",
        "https://github.com/RUCAIBox/CIKM2020-S3Rec",
        _UNKNOWN,
        "review",
    ),
    _folder(
        "tiktok",
        "TikTok as used by DiffMM",
        "https://github.com/HKUDS/DiffMM",
        _UNKNOWN,
        "play",
    ),
)
