"""The data sets of this package as builders of tensorflow-datasets.

For code that reads its data through TFDS. Importing this module registers them:

    import tensorflow_datasets as tfds
    import tfcsmf.data.datasets.builders
    log = tfds.load("taobao_userbehavior", data_dir="prepared", split="train",
                    download_and_prepare_kwargs={"download_config":
                        tfds.download.DownloadConfig(manual_dir="downloads")})

An example is an event. The files are converted as for `--dataset`, with the same
result in the same cache, and then written by TFDS one example at a time, which is slow
for large logs. `--dataset` itself reads the Parquet files and needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from tfcsmf.data.datasets.registry import event_log, find

_BATCH = 65_536
# TFDS calls the parts of a log by these names, and the whole of one "train".
_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class _EventLog(  # type: ignore[call-arg]  # the base class is not seen
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Events of one registered data set, named by the class or its configuration."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    @property
    def dataset(self) -> str:
        """What `--dataset` calls it."""
        config = self.builder_config
        return f"{self.name}_{config.name}" if config else self.name

    def _info(self) -> tfds.core.DatasetInfo:
        dataset = find(self.dataset)
        objectives = " > ".join(dataset.objectives)
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{dataset.title} as a log of events, {objectives}.",
            features=tfds.features.FeaturesDict(
                {
                    "user_id": text,
                    "item_id": text,
                    "event": text,
                    # As in the source; 0 where no time is known.
                    "timestamp": tfds.features.Scalar(np.int64),
                }
            ),
            homepage=dataset.homepage,
            license=dataset.licence,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        files = event_log(self.dataset, dl_manager.manual_dir)
        scan = pl.scan_parquet(files.events)
        if "split" not in scan.collect_schema().names():
            return {"train": self._generate_examples(files.events, None)}
        present = scan.select(pl.col("split").unique()).collect()["split"].to_list()
        return {
            name: self._generate_examples(files.events, split)
            for split, name in _SPLITS.items()
            if split in present
        }

    def _generate_examples(
        self, path: Path, split: str | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(_BATCH):
            events = pl.DataFrame(batch)
            if split is not None:
                events = events.filter(pl.col("split") == split)
            if "timestamp" not in events.columns:
                events = events.with_columns(timestamp=pl.lit(0, pl.Int64))
            events = events.select(
                pl.col("user_id", "item_id").cast(pl.String), "event", "timestamp"
            )
            for example in events.iter_rows(named=True):
                yield number, example
                number += 1


def _instructions(*names: str) -> str:
    """What to put into the manual folder, as `--dataset` says it."""
    return "\n".join(find(name).instructions for name in names)


def _configs(*names: str) -> list[Any]:
    return [
        tfds.core.BuilderConfig(name=name, version=_EventLog.VERSION) for name in names
    ]


class Aliexpress(_EventLog):
    """AliExpress' search, one configuration per country."""

    BUILDER_CONFIGS = _configs("nl", "es", "fr", "us", "ru")
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("aliexpress_nl")


class AliCcp(_EventLog):
    """Ali-CCP."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("ali_ccp")


class TaobaoUserbehavior(_EventLog):
    """UserBehavior.csv of Taobao."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("taobao_userbehavior")


class Retailrocket(_EventLog):
    """RetailRocket."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("retailrocket")


class Kuairand(_EventLog):
    """KuaiRand, one configuration per size."""

    BUILDER_CONFIGS = _configs("pure", "1k", "27k")
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions(
        "kuairand_pure", "kuairand_1k", "kuairand_27k"
    )
