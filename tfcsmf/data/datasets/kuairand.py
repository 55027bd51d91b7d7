"""KuaiRand: videos shown, clicked, watched at length and liked on Kuaishou."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tfcsmf.data.datasets.sources import Types, scan_named, with_levels
from tfcsmf.data.datasets.spec import DataSet, Files, Layout, SourceFile, Tables

# Event -> its flag in the log; every row is an exposure.
_FLAGS = {
    "click": "is_click",
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
}
_LOG: Types = {
    **{"user_id": pl.Int64, "video_id": pl.Int64, "time_ms": pl.Int64},
    **dict.fromkeys(_FLAGS.values(), pl.Int8),
}
# All coded or in words; counts that a range column gives too are left out.
_USER: Types = {
    "user_id": pl.Int64,
    "user_active_degree": pl.String,
    "is_lowactive_period": pl.String,
    "is_live_streamer": pl.String,
    "is_video_author": pl.String,
    "follow_user_num_range": pl.String,
    "fans_user_num_range": pl.String,
    "friend_user_num_range": pl.String,
    "register_days_range": pl.String,
    **{f"onehot_feat{number}": pl.String for number in range(18)},
}
# What is known of a video when it is uploaded; its statistics are of the whole month.
_VIDEO: Types = {
    "video_id": pl.Int64,
    "author_id": pl.String,
    "video_type": pl.String,
    "upload_type": pl.String,
    "video_duration": pl.Float64,
    "music_type": pl.String,
    "tag": pl.String,
}


def _read(files: Files, work: Path) -> Tables:
    levels = {"exposure": pl.lit(True)} | {
        event: pl.col(flag) == 1 for event, flag in _FLAGS.items()
    }
    events = with_levels(scan_named(files["log"], _LOG), levels).select(
        "user_id",
        pl.col("video_id").alias("item_id"),
        "event",
        pl.col("time_ms").alias("timestamp"),
    )
    users = items = None
    if "users" in files:
        users = scan_named(files["users"], _USER)
    if "videos" in files:
        videos = scan_named(files["videos"], _VIDEO)
        items = videos.rename({"video_id": "item_id"}).with_columns(
            pl.col("tag").str.split(",")
        )
    return Tables(events, items, users)


def _kuairand(size: str, title: str, parts: int, exposures: int) -> DataSet:
    archive = f"KuaiRand-{title}"
    return DataSet(
        name=f"kuairand_{size}",
        title=archive,
        homepage="https://kuairand.com",
        licence="CC BY-SA 4.0",
        download=(
            f"Download {archive}.tar.gz from https://zenodo.org/records/10439422 and "
            "unpack it. Of the logs the standard ones are used, not the random one."
        ),
        objectives=("exposure", "click", "long_view", "like"),
        layouts=(
            Layout(
                (
                    SourceFile("log", f"log_standard_*_{size}*.csv", parts=parts),
                    SourceFile("users", f"user_features_{size}.csv", False),
                    SourceFile("videos", f"video_features_basic_{size}.csv", False),
                ),
                _read,
            ),
        ),
        folders=("data", f"{archive}/data"),
        published={"exposure": exposures},
    )


KUAIRAND = (
    _kuairand("1k", "1K", 2, 11_713_045),
    _kuairand("pure", "Pure", 2, 1_436_609),
    _kuairand("27k", "27K", 4, 322_278_385),
)
