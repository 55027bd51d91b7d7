"""Fitted feature encoders: raw columns to embedding rows or vectors.

Each encoder works twice with one result: `encode` on whole columns during data
preparation, and `encode_tensor` with TensorFlow ops only inside an exported
model. TensorFlow is imported on first use, so that preparation stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tfcsmf.data.rows import MISSING, NUM_RESERVED, PADDING, UNKNOWN
from tfcsmf.data.scalars import as_numbers, as_text
from tfcsmf.data.values import as_tokens, as_vectors
from tfcsmf.errors import DataError

if TYPE_CHECKING:
    import tensorflow as tf

KINDS = ("categorical", "numeric", "multi", "vector")


@dataclass(frozen=True)
class FeatureEncoder:
    """Encodes one feature; build it with `fit` or `from_dict`.

    Attributes:
      name: the column.
      kind: "categorical" (one embedding row per value), "numeric" (one row per
        quantile bucket), "multi" (several values per entity) or "vector".
      vocabulary: values with a row of their own, most frequent first; value v
        has the row `vocabulary.index(v) + NUM_RESERVED`.
      boundaries: ascending lower ends of the buckets after the first.
      width: length of the vectors.
      centre: mean of the vectors that are there, which encoding subtracts. Vectors of
        one network have much in common, which would drown what tells them apart.
      factor: encoding multiplies by it, for a mean square length of 1.
      max_values: columns of an encoded "multi" feature.

    Example:
      >>> import polars as pl
      >>> colours = pl.Series("colour", ["red", "blue", "red", None])
      >>> encoder = FeatureEncoder.fit("colour", "categorical", colours)
      >>> encoder.encode(pl.Series(["red", "blue", "green", None])).tolist()
      [3, 4, 2, 1]
    """

    name: str
    kind: str
    vocabulary: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    width: int = 0
    centre: tuple[float, ...] = ()
    factor: float = 1.0
    max_values: int = 0
    _lookup: list[Any] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Checks the kind.

        Raises:
          DataError: for an unknown kind.
        """
        if self.kind not in KINDS:
            raise DataError(
                f"The kind of feature {self.name!r} should be one of {KINDS}. "
                f"Received: {self.kind!r}."
            )

    @classmethod
    def fit(
        cls,
        name: str,
        kind: str,
        series: pl.Series,
        *,
        min_count: int = 1,
        buckets: int = 20,
        max_values: int = 20,
    ) -> FeatureEncoder:
        """Learns the vocabulary, the bucket boundaries or the width.

        Args:
          name: the column's name.
          kind: one of `KINDS`.
          series: one value per entity.
          min_count: values of fewer entities share the row `UNKNOWN`.
          buckets: at most this many numeric buckets.
          max_values: "multi" features keep at most this many values per entity.

        Raises:
          DataError: if the column's type or values do not fit the kind.
        """
        series = series.alias(name)
        if kind == "categorical":
            return cls(name, kind, vocabulary=_vocabulary(as_text(series), min_count))
        if kind == "numeric":
            return cls(name, kind, boundaries=_boundaries(as_numbers(series), buckets))
        if kind == "multi":
            rows, values = as_tokens(series)
            lengths = np.bincount(rows, minlength=1)
            frame = pl.DataFrame({"row": rows, "value": values}).unique()
            return cls(
                name,
                kind,
                vocabulary=_vocabulary(frame["value"], min_count),
                max_values=int(np.clip(lengths.max(), 1, max_values)),
            )
        if kind == "vector":
            vectors = as_vectors(series)
            centre, factor = _moments(vectors)
            return cls(name, kind, width=vectors.shape[1], centre=centre, factor=factor)
        return cls(name, kind)

    @property
    def num_rows(self) -> int:
        """Rows of the feature's embedding table; 0 for vectors, which have none."""
        if self.kind == "vector":
            return 0
        if self.kind == "numeric":
            return NUM_RESERVED + len(self.boundaries) + 1
        return NUM_RESERVED + len(self.vocabulary)

    def encode(self, series: pl.Series) -> np.ndarray:
        """Encodes one raw value per entity.

        Returns:
          categorical and numeric: rows, int32 [n]; multi: rows, int32
          [n, max_values], padded with `PADDING`, `[MISSING, PADDING, ..]` where
          there is no value; vector: float32 [n, width + 1], centred and scaled; the
          last column is 1 where the vector is missing (the others are then 0).

        Raises:
          DataError: if the column's type or values do not fit the kind.
        """
        series = series.alias(self.name)
        if self.kind == "categorical":
            text = as_text(series)
            missing = text.is_null().to_numpy()
            return np.where(missing, MISSING, self._rows(text)).astype(np.int32)
        if self.kind == "numeric":
            numbers = as_numbers(series)
            bounds = np.asarray(self.boundaries, np.float32)
            bucket = np.searchsorted(bounds, numbers, side="right") + NUM_RESERVED
            return np.where(np.isnan(numbers), MISSING, bucket).astype(np.int32)
        if self.kind == "multi":
            return self._encode_multi(series)
        vectors = as_vectors(series, self.width)
        missing = ~np.isfinite(vectors).all(axis=1, keepdims=True)
        vectors = (vectors - self._centre()) * np.float32(self.factor)
        vectors = np.where(missing, np.float32(0), vectors)
        return np.concatenate([vectors, missing.astype(np.float32)], axis=1)

    def encode_tensor(self, raw: tf.Tensor) -> tf.Tensor:
        """Does the same with TensorFlow ops, for use inside a model.

        Args:
          raw: categorical: string [B], "" is missing; numeric: float32 [B], NaN
            is missing; multi: string [B, any], padded with ""; vector: float32
            [B, width], missing if any entry is not finite.

        Returns:
          What `encode` returns, as a tensor.
        """
        import tensorflow as tf

        if self.kind == "categorical":
            return self._tensor_rows(raw)
        if self.kind == "numeric":
            bounds = tf.constant(self.boundaries, tf.float32)
            bucket = tf.searchsorted(bounds, raw, side="right") + NUM_RESERVED
            return tf.where(tf.math.is_nan(raw), MISSING, bucket)
        if self.kind == "multi":
            return self._multi_tensor(raw)
        missing = tf.reduce_any(~tf.math.is_finite(raw), axis=1, keepdims=True)
        # As `encode` does it, so that the results are the same to the bit.
        vectors = (raw - tf.constant(self._centre())) * np.float32(self.factor)
        vectors = tf.where(missing, tf.zeros_like(raw), vectors)
        return tf.concat([vectors, tf.cast(missing, tf.float32)], axis=1)

    def build_lookup(self) -> tf.lookup.StaticHashTable | None:
        """Returns the vocabulary's hash table, created once per encoder.

        A module that calls `encode_tensor` in an exported function should hold
        the table as an attribute: only tracked tables are saved. None for
        kinds without a vocabulary.
        """
        import tensorflow as tf

        if self.kind not in ("categorical", "multi"):
            return None
        if not self._lookup:
            # Outside of any function being traced, or the table would belong
            # to that function's graph only.
            with tf.init_scope():
                # "" also keeps the table from being empty, which TF refuses.
                keys = tf.constant(["", *self.vocabulary], tf.string)
                rows = np.arange(len(self.vocabulary), dtype=np.int64) + NUM_RESERVED
                rows = np.concatenate([[MISSING], rows])
                self._lookup.append(
                    tf.lookup.StaticHashTable(
                        tf.lookup.KeyValueTensorInitializer(keys, rows),
                        default_value=UNKNOWN,
                    )
                )
        return self._lookup[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fitted state as JSON-able values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "vocabulary": list(self.vocabulary),
            "boundaries": list(self.boundaries),
            "width": self.width,
            "centre": list(self.centre),
            "factor": self.factor,
            "max_values": self.max_values,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> FeatureEncoder:
        """Builds the encoder that `to_dict` described."""
        return cls(
            name=state["name"],
            kind=state["kind"],
            vocabulary=tuple(state["vocabulary"]),
            boundaries=tuple(state["boundaries"]),
            width=state["width"],
            # Encoders of earlier versions left vectors as they were.
            centre=tuple(state.get("centre", ())),
            factor=state.get("factor", 1.0),
            max_values=state["max_values"],
        )

    def _centre(self) -> np.ndarray:
        return np.asarray(self.centre or np.zeros(self.width), np.float32)

    def _rows(self, text: pl.Series) -> np.ndarray:
        """Looks values up in the vocabulary, int32 [n]."""
        if not self.vocabulary:
            return np.full(len(text), UNKNOWN, np.int32)
        rows = np.arange(len(self.vocabulary), dtype=np.int32) + NUM_RESERVED
        return text.replace_strict(
            pl.Series(self.vocabulary),
            pl.Series(rows),
            default=UNKNOWN,
            return_dtype=pl.Int32,
        ).to_numpy()

    def _encode_multi(self, series: pl.Series) -> np.ndarray:
        rows, values = as_tokens(series)  # sorted by row
        column = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = column < self.max_values
        result = np.full((len(series), self.max_values), PADDING, np.int32)
        result[rows[kept], column[kept]] = self._rows(values)[kept]
        empty = np.bincount(rows, minlength=len(series)) == 0
        result[empty, 0] = MISSING
        return result

    def _tensor_rows(self, raw: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        lookup = self.build_lookup()
        assert lookup is not None  # for the type checker: the kinds that look up
        return tf.cast(lookup.lookup(raw), tf.int32)

    def _multi_tensor(self, raw: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        size = self.max_values
        # [B, any] -> [B, max_values], the given values first.
        blank = tf.cast(tf.equal(raw, ""), tf.int32)
        order = tf.argsort(blank, axis=1, stable=True)
        raw = tf.gather(raw, order, batch_dims=1)[:, :size]
        raw = tf.pad(raw, [[0, 0], [0, size - tf.shape(raw)[1]]], constant_values="")
        raw = tf.ensure_shape(raw, [None, size])
        blank = tf.equal(raw, "")
        rows = tf.where(blank, PADDING, self._tensor_rows(raw))
        first = tf.one_hot(0, size, on_value=True, off_value=False, dtype=tf.bool)
        none = tf.reduce_all(blank, axis=1, keepdims=True) & first
        return tf.where(none, MISSING, rows)


def _vocabulary(text: pl.Series, min_count: int) -> tuple[str, ...]:
    counts = text.drop_nulls().alias("value").value_counts(name="count")
    counts = counts.filter(pl.col("count") >= min_count)
    ordered = counts.sort("count", "value", descending=[True, False])
    return tuple(ordered["value"].to_list())


def _boundaries(numbers: np.ndarray, buckets: int) -> tuple[float, ...]:
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return ()
    distinct = np.unique(finite)
    if len(distinct) <= buckets:
        bounds = distinct
    else:
        shares = np.arange(1, buckets) / buckets
        # An observed value, not a mixture of two: exact in float32.
        bounds = np.unique(np.quantile(finite, shares, method="inverted_cdf"))
    # The first bucket starts below every value.
    return tuple(float(bound) for bound in bounds if bound > distinct[0])


def _moments(vectors: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Returns the mean of the finite vectors, and one over their spread around it."""
    known = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    if not len(known):
        return (), 1.0
    centre = known.mean(axis=0).astype(np.float32)
    square = float(np.square(known - centre).sum(axis=1).mean())
    factor = 1.0 / np.sqrt(square) if square > 1e-12 else 1.0
    return tuple(map(float, centre)), float(np.float32(factor))
