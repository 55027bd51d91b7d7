"""The builders of tensorflow-datasets give the events that `--dataset` reads."""

import polars as pl
import pytest

from tfcsmf.data.datasets import event_log

pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it")

tfds = pytest.importorskip("tensorflow_datasets")


def _load(name, manual, prepared):
    import tfcsmf.data.datasets.builders  # noqa: F401  (registers them)

    builder = tfds.builder(name, data_dir=str(prepared))
    config = tfds.download.DownloadConfig(manual_dir=str(manual))
    builder.download_and_prepare(download_config=config)
    return {
        split: [
            (row["user_id"].decode(), row["item_id"].decode(), row["event"].decode())
            + (int(row["timestamp"]),)
            for row in tfds.as_numpy(builder.as_dataset(split=split))
        ]
        for split in builder.info.splits
    }


def test_a_log_without_a_split_is_one_part(tmp_path):
    lines = ["1,7,70,pv,1511544070", "1,7,70,buy,1511544071", "2,8,70,cart,1511544072"]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
    parts = _load("taobao_userbehavior", tmp_path, tmp_path / "prepared")
    events = pl.read_parquet(event_log("taobao_userbehavior", tmp_path).events)
    events = events.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    assert set(parts) == {"train"}
    assert sorted(parts["train"]) == sorted(events.rows())


def test_the_files_split_is_kept(tmp_path):
    header = "click,purchase," + ",".join(
        str(field)
        for field in (101, 205, 206, 207, 210, 216)
        + (121, 122, 124, 125, 126, 127, 128, 129)
    )
    rest = ",1" * 12
    for split, rows in {"train": ["1,0,5,9", "0,0,5,8"], "test": ["0,0,6,9"]}.items():
        path = tmp_path / f"ali_ccp_{split}_sample.csv"
        path.write_text("\n".join([header, *(row + rest for row in rows)]) + "\n")
    parts = _load("ali_ccp", tmp_path, tmp_path / "prepared")
    train = {("5", "9", "exposure"), ("5", "9", "click"), ("5", "8", "exposure")}
    assert {row[:3] for row in parts["train"]} == train
    assert [row[:3] for row in parts["test"]] == [("6", "9", "exposure")]


def test_without_files_it_says_what_to_download(tmp_path):
    with pytest.raises(Exception, match="UserBehavior.csv.zip"):
        _load("taobao_userbehavior", tmp_path / "none", tmp_path / "prepared")


def test_configurations_name_the_registered_data_sets():
    from tfcsmf.data.datasets import DATASETS
    from tfcsmf.data.datasets.builders import Aliexpress, Kuairand

    for builder in (Aliexpress, Kuairand):
        names = [f"{builder.name}_{config.name}" for config in builder.BUILDER_CONFIGS]
        assert set(names) == {
            name for name in DATASETS if name.startswith(builder.name)
        }
