"""Columns with several values per entity, as tokens or as vectors."""

from __future__ import annotations

import numpy as np
import polars as pl

from tfcsmf.data.scalars import as_text
from tfcsmf.errors import DataError


def as_tokens(series: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Flattens a multi-valued column; null and empty values are left out.

    Args:
      series: lists or arrays of scalars, or text such as "a|b|c" or "a,b,c"
        ("|" wins where both occur).

    Returns:
      The row of every token, int64 [t], ascending, and the tokens as text [t].

    Example:
      >>> import polars as pl
      >>> rows, values = as_tokens(pl.Series(["a|b", None, "c"]))
      >>> rows.tolist(), values.to_list()
      ([0, 0, 2], ['a', 'b', 'c'])
    """
    name = series.name
    lists = _as_lists(series) if series.dtype.is_nested() else _split(series)
    frame = pl.DataFrame({"row": np.arange(len(lists)), "value": lists})
    frame = frame.filter(pl.col("value").list.len() > 0).explode("value")
    text = as_text(frame["value"].alias(name)).str.strip_chars()
    frame = pl.DataFrame({"row": frame["row"], "value": text})
    frame = frame.filter(pl.col("value").is_not_null() & (pl.col("value") != ""))
    return frame["row"].cast(pl.Int64).to_numpy(), frame["value"]


def as_vectors(series: pl.Series, width: int | None = None) -> np.ndarray:
    """Stacks a vector column.

    Args:
      series: lists or arrays of numbers, or text such as "0.1,0.2" or
        "[0.1 0.2]".
      width: the length all vectors should have; None takes the first one's.

    Returns:
      float32 [n, width], NaN throughout where there is no vector.

    Raises:
      DataError: for vectors of other lengths, entries that are not numbers, or
        a column without any vector (if `width` is None).
    """
    name = series.name
    if series.dtype == pl.Null and width is not None:
        return np.full((len(series), width), np.nan, np.float32)
    lists = _as_lists(series) if series.dtype.is_nested() else _parse_vectors(series)
    lengths = lists.list.len()
    given = (lengths.fill_null(0) > 0).to_numpy()
    sizes = lengths.filter(pl.Series(given)).to_numpy()
    if width is None:
        if not sizes.size:
            raise DataError(
                f"The vector column {name!r} should hold at least one vector. "
                "List it in data.ignore."
            )
        width = int(sizes[0])
    if (sizes != width).any():
        row = np.flatnonzero(given)[np.argmax(sizes != width)]
        raise DataError(
            f"All vectors of column {name!r} should have the same length ({width}). "
            f"Received: {lengths[int(row)]} values in row {row} (the first row is 0). "
            "Make them equal, or list the column in data.ignore."
        )
    result = np.full((len(series), width), np.nan, np.float32)
    flat = lists.filter(pl.Series(given)).explode()
    try:
        flat = flat.cast(pl.Float32)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"The vector column {name!r} should hold numbers. Received: {error}"
        ) from error
    if flat.len():
        flat = flat.fill_null(float("nan"))
        result[given] = flat.to_numpy().reshape(-1, width)
    return result


def _as_lists(series: pl.Series) -> pl.Series:
    kind = series.dtype
    if kind.base_type() == pl.Array:
        return series.arr.to_list()
    if kind.base_type() == pl.List:
        return series
    raise DataError(
        f"Column {series.name!r} should hold single values or lists. Received: {kind}."
    )


def _split(series: pl.Series) -> pl.Series:
    text = as_text(series).alias("text")
    value = pl.col("text")
    return text.to_frame().select(
        pl.when(value.str.contains("|", literal=True))
        .then(value.str.split("|"))
        .otherwise(value.str.split(","))
    )["text"]


def _parse_vectors(series: pl.Series) -> pl.Series:
    text = as_text(series).str.strip_chars(" []()\t\n")
    return text.str.replace_all(r"[|,;\s]+", ",").str.strip_chars(",").str.split(",")
