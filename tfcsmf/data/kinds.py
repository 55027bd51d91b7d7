"""Decides which columns of an item or user table are features, and encodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from tfcsmf.config import DataConfig
from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.values import as_vectors
from tfcsmf.errors import DataError, nearest

_MANY = 1000  # distinct values from which a column stops being categorical


def infer_kind(series: pl.Series) -> tuple[str | None, str]:
    """Infers how a column is encoded from its type.

    Text, booleans and whole numbers of few values are categorical, other numbers
    numeric, lists of text or whole numbers multi, lists of decimals vectors.

    Returns:
      The kind and "", or None and the reason why the column is left out.

    Raises:
      DataError: if a column of vectors holds different lengths.

    Example:
      >>> import polars as pl
      >>> infer_kind(pl.Series([0.5, 1.5]))
      ('numeric', '')
    """
    kind = series.dtype
    if series.null_count() == len(series):
        return None, "it has no values"
    if kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum):
        distinct = series.drop_nulls().n_unique()
        if distinct > _MANY and distinct > 0.5 * len(series):
            return None, f"{distinct} of its {len(series)} values are distinct"
        return "categorical", ""
    if kind.is_integer():
        few = series.drop_nulls().n_unique() <= _MANY
        return ("categorical" if few else "numeric"), ""
    if kind.is_float() or kind.is_decimal():
        return "numeric", ""
    if isinstance(kind, pl.List | pl.Array):
        inner = kind.inner
        if inner in (pl.String, pl.Categorical, pl.Enum) or inner.is_integer():
            return "multi", ""
        if inner.is_float():
            as_vectors(series)  # checks the lengths
            return "vector", ""
    if kind.is_temporal():
        return None, "dates and times are not features"
    return None, f"its type {kind} is not supported"


def fit_encoders(
    table: pl.DataFrame | None,
    declared: Mapping[str, str],
    data: DataConfig,
    source: str,
) -> tuple[tuple[FeatureEncoder, ...], dict[str, str]]:
    """Fits one encoder per feature on all rows of a table.

    Args:
      table: ids in the first column; None gives no features.
      declared: kinds by column name; other columns are inferred.
      data: `ignore` and the limits of the encoders.
      source: "items" or "users", named in errors.

    Returns:
      The encoders in column order, and why columns were left out.

    Raises:
      DataError: if a declared column is absent or does not fit its kind.
    """
    available = [] if table is None else table.columns[1:]
    for name in declared:
        if name in available and name not in data.ignore:
            continue
        if table is None:
            received = f"no {source} table (set data.{source})"
        elif name in data.ignore:
            received = "the column is listed in data.ignore"
        else:
            received = f"columns {available}"
        raise DataError(
            f"The declared feature {name!r} should be a column of the {source} table."
            f"{nearest(name, available)} Received: {received}. Correct "
            f"data.{'candidate' if source == 'items' else 'query'}_features."
        )
    encoders, notes = [], {}
    for name in available:
        if table is None or name in data.ignore:
            continue
        kind, reason = (declared.get(name), "")
        if kind is None:
            kind, reason = infer_kind(table[name])
        if kind is None:
            notes[name] = reason
            continue
        encoders.append(
            FeatureEncoder.fit(
                name,
                kind,
                table[name],
                min_count=data.min_count,
                buckets=data.numeric_buckets,
                max_values=data.max_values,
            )
        )
    return tuple(encoders), notes


def check_ignored(tables: Sequence[pl.DataFrame | None], ignore: Sequence[str]) -> None:
    """Checks that every ignored column exists in some table.

    Raises:
      DataError: naming the nearest column.
    """
    known = [name for table in tables if table is not None for name in table.columns]
    for name in ignore:
        if name not in known:
            raise DataError(
                "data.ignore should name columns of the item or user table. "
                f"Received: {name!r}.{nearest(name, known)}"
            )


def encode_table(
    table: pl.DataFrame | None,
    ids: np.ndarray,
    encoders: Sequence[FeatureEncoder],
) -> dict[str, np.ndarray]:
    """Encodes the features of entities in the order of `ids`.

    Args:
      table: ids in the first column; entities without a row, and features
        without a column, are missing.
      ids: object array of strings [n].
      encoders: fitted encoders.

    Returns:
      Encoded features by name, one row per id.
    """
    if not encoders:
        return {}
    wanted = pl.Series("id", ids, dtype=pl.String).to_frame()
    if table is None:
        joined = wanted
    else:
        key = table.columns[0]
        names = [e.name for e in encoders if e.name in table.columns]
        joined = wanted.join(
            table.select(key, *names),
            left_on="id",
            right_on=key,
            how="left",
            maintain_order="left",
            suffix="_feature",
        )
        if "id" in names:  # a feature that is itself called "id"
            joined = joined.drop("id").rename({"id_feature": "id"})
    features = {}
    for encoder in encoders:
        present = table is not None and encoder.name in table.columns
        column = (
            joined[encoder.name]
            if present
            else pl.Series(encoder.name, [None] * len(ids), dtype=pl.Null)
        )
        features[encoder.name] = encoder.encode(column)
    return features
