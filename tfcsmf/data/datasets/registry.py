"""All data sets by name."""

from __future__ import annotations

from pathlib import Path

from tfcsmf.data.datasets.ali_ccp import ALI_CCP
from tfcsmf.data.datasets.aliexpress import ALIEXPRESS
from tfcsmf.data.datasets.conversion import LogFiles, convert
from tfcsmf.data.datasets.folders import FOLDERS
from tfcsmf.data.datasets.kuairand import KUAIRAND
from tfcsmf.data.datasets.movielens import MOVIELENS
from tfcsmf.data.datasets.retailrocket import RETAILROCKET
from tfcsmf.data.datasets.spec import DataSet
from tfcsmf.data.datasets.taobao_userbehavior import TAOBAO_USERBEHAVIOR
from tfcsmf.errors import DataError, nearest

DATASETS: dict[str, DataSet] = {
    dataset.name: dataset
    for dataset in (
        *ALIEXPRESS,
        ALI_CCP,
        TAOBAO_USERBEHAVIOR,
        RETAILROCKET,
        *KUAIRAND,
        *MOVIELENS,
        *FOLDERS,
    )
}


def find(name: str) -> DataSet:
    """Returns the data set of a name.

    Raises:
      DataError: if there is none; the message names the nearest and all of them.

    Example:
      >>> find("retailrocket").objectives
      ('view', 'addtocart', 'transaction')
    """
    if name not in DATASETS:
        raise DataError(
            f"--dataset should name a registered data set. Received: {name!r}."
            f"{nearest(name, DATASETS)} Registered: {', '.join(DATASETS)}. "
            "docs/datasets.md describes them; other logs are read with --events."
        )
    return DATASETS[name]


def event_log(
    name: str, data_dir: str | Path, cache_dir: str | Path | None = None
) -> LogFiles:
    """Returns the event log of a data set, converting its files if need be.

    Args:
      name: see `DATASETS`.
      data_dir: the folder its files lie in.
      cache_dir: where conversions are kept; see `convert`.

    Raises:
      DataError: for an unknown name, missing or malformed files.
    """
    return convert(find(name), data_dir, cache_dir)
