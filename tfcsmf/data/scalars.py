"""Columns of any scalar type as text, as float32 numbers, or as times."""

from __future__ import annotations

import numpy as np
import polars as pl

from tfcsmf.errors import DataError

_ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
)
_TIME_RULE = (
    "should hold dates, datetimes, numbers, or text such as 2024-01-31 or "
    "2024-01-31T12:00:00"
)


def as_text(series: pl.Series) -> pl.Series:
    """Returns the values as strings; null, NaN and "" become null.

    Whole floats lose their decimals, so that an id column which became
    floating point only because of an empty field still matches.

    Raises:
      DataError: if the column is not of a scalar type.

    Example:
      >>> import polars as pl
      >>> as_text(pl.Series([12.0, 0.5, None, float("nan")])).to_list()
      ['12', '0.5', None, None]
    """
    kind = series.dtype
    if kind.is_nested() or kind in (pl.Binary, pl.Object):
        raise DataError(
            f"Column {series.name!r} should hold single values (text, numbers, "
            f"dates). Received: {kind}. Write it as one of these; a feature may also "
            "be listed in data.ignore."
        )
    if kind.is_decimal():  # exact, where a float has 53 bits
        text = series.cast(pl.String)
        return text.str.replace(r"(\.\d*?)0+$", "${1}").str.strip_suffix(".")
    if kind.is_float():
        series = series.cast(pl.Float64)
        value = pl.col(series.name)
        whole = value.is_finite() & (value == value.round()) & (value.abs() < 2.0**63)
        return series.to_frame().select(
            pl.when(value.is_nan())
            .then(None)
            .when(whole)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(value.cast(pl.String))
            .alias(series.name)
        )[series.name]
    text = series.cast(pl.String)
    empty = text == ""
    if not empty.any():
        return text
    return text.to_frame().select(
        pl.when(pl.col(text.name) != "").then(pl.col(text.name)).alias(text.name)
    )[text.name]


def as_numbers(series: pl.Series) -> np.ndarray:
    """Returns float32 [n], NaN where missing; text is parsed.

    Raises:
      DataError: if the type has no numeric reading, or text is not a number.
    """
    kind = series.dtype
    if kind == pl.String:
        text = as_text(series)
        numbers = text.str.strip_chars().cast(pl.Float64, strict=False)
        wrong = numbers.is_null() & text.is_not_null()
        if wrong.any():
            raise DataError(
                f"The numeric column {series.name!r} should hold numbers. "
                f"Received: {text.filter(wrong)[0]!r} in row {wrong.arg_max()} "
                "(the first row is 0). Declare it categorical, or list it in "
                "data.ignore."
            )
    elif kind.is_numeric() or kind in (pl.Boolean, pl.Null):
        numbers = series.cast(pl.Float64)
    else:
        raise DataError(
            f"The numeric column {series.name!r} should hold numbers. Received: {kind}."
        )
    with np.errstate(over="ignore"):  # beyond float32 means infinite, as in TF
        return numbers.fill_null(float("nan")).to_numpy().astype(np.float32)


def as_times(series: pl.Series) -> pl.Series:
    """Returns Int64 times, larger is later; null where a value has no reading.

    Dates and ISO texts become microseconds since 1970 (UTC where no zone is
    given). Whole numbers stay as they are; a column with fractions is read as
    seconds and becomes microseconds.

    Raises:
      DataError: if the type of the column cannot be a time.
    """
    kind = series.dtype
    if kind == pl.String:
        return _parse_times(series)
    if kind == pl.Date or kind.base_type() == pl.Datetime:
        return series.cast(pl.Datetime("us")).dt.epoch("us")
    if kind.is_integer():
        return series.cast(pl.Int64, strict=False)
    if kind.is_float() or kind.is_decimal():
        return _whole_times(series.cast(pl.Float64))
    if kind == pl.Null:
        return series.cast(pl.Int64)
    raise DataError(
        f"The time column {series.name!r} {_TIME_RULE}. Received: {kind}. "
        "Map another column with --set data.columns.time=[<column>]."
    )


def _whole_times(series: pl.Series) -> pl.Series:
    value = pl.col(series.name)
    frame = series.to_frame().select(pl.when(value.is_finite()).then(value))
    finite = frame[series.name]
    if not (finite == finite.round()).all():
        finite = (finite * 1e6).round()
    return finite.cast(pl.Int64, strict=False)


def _parse_times(series: pl.Series) -> pl.Series:
    text = series.str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        exact = text.cast(pl.Int64, strict=False)
        if exact.null_count() == text.null_count():
            return exact
        return _whole_times(numbers)
    name = series.name
    # Zones first: "UTC" has a "T" too.
    spaced = pl.col(name).str.replace(r"( ?UTC|Z)$", "")
    spaced = spaced.str.replace("T", " ", literal=True)
    readings = [
        spaced.str.to_datetime(
            pattern, time_unit="us", time_zone="UTC", strict=False, ambiguous="null"
        ).dt.epoch("us")
        for pattern in _ISO_FORMATS
    ]
    dates = spaced.str.to_date("%Y-%m-%d", strict=False)
    readings.append(dates.cast(pl.Datetime("us")).dt.epoch("us"))
    return text.to_frame().select(pl.coalesce(readings).alias(name))[name]
