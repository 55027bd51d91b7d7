"""Dividing a table by its key loses nothing and keeps one row of each."""

import numpy as np
import polars as pl

from tfcsmf.data.datasets.distinct import distinct_rows
from tfcsmf.data.splits import mix


def test_one_row_per_key_in_ascending_order(tmp_path):
    number = np.arange(5000) % 700
    keys = mix(number).view(np.int64)
    keys[0], keys[1] = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    rows = pl.LazyFrame({"key": keys, "value": keys % 97})
    result = distinct_rows(rows, "key", tmp_path).collect()
    assert result.columns == ["key", "value"]
    assert result["key"].to_list() == sorted(set(keys.tolist()))
    assert result["value"].to_list() == (result["key"].to_numpy() % 97).tolist()
