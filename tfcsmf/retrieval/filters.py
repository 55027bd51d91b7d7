"""Filters chosen at request time: which candidates pass, and the best of those.

Standard TensorFlow operations only, as far as the index has no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.data.scalars import as_text
from tfcsmf.retrieval.exact_index import ABSENT, Index
from tfcsmf.retrieval.raw_inputs import string_table

# Where at most one of so many candidates passes, those that do are simply scored: what
# an index would have to read to find enough of them is about as much.
_SPARSE = 32
# Candidates scored at once: 16 MiB of vectors with 64 dimensions.
_BLOCK = 2**16
_EXAMPLES = 50  # values named in `describe`


class ItemFilters(tf.Module):
    """Values of categorical item attributes, by catalogue position.

    Args:
      columns: attribute -> its distinct values, and the index of every candidate's
        value, int [C], negative where it has none.
      size: candidates C.

    Example:
      >>> filters = ItemFilters({"colour": (["red", "blue"], np.array([1, 0, -1]))}, 3)
      >>> chosen = filters.codes({"colour": tf.constant([["blue", "pink"], ["", ""]])})
      >>> [filters.passing([row]).numpy().tolist() for row in chosen[0]]
      [[True, False, False], [True, True, True]]
    """

    def __init__(
        self, columns: Mapping[str, tuple[Sequence[str], np.ndarray]], size: int
    ) -> None:
        super().__init__()
        self._size = size
        self.tables: list[Any] = []
        self.stored: list[tf.Variable] = []
        described: dict[str, dict[str, Any]] = {}
        for name, (values, codes) in columns.items():
            # From 1 on; 0 is a candidate without a value.
            numbers = np.arange(1, len(values) + 1)
            self.tables.append(string_table(list(values), numbers, ABSENT))
            own = np.maximum(np.asarray(codes, np.int32) + 1, 0)
            self.stored.append(tf.Variable(own, trainable=False))
            examples = [str(value) for value in values[:_EXAMPLES]]
            described[name] = {"values": len(values), "examples": examples}
        # A function: TensorFlow would wrap a dictionary for tracking.
        self._described = lambda: described

    @classmethod
    def of_table(cls, items: EntityTable) -> ItemFilters:
        """Takes the categorical features of a catalogue, with their vocabularies."""
        columns = {
            encoder.name: (
                encoder.vocabulary,
                items.features[encoder.name] - NUM_RESERVED,
            )
            for encoder in items.encoders
            if encoder.kind == "categorical"
        }
        return cls(columns, items.size)

    @classmethod
    def of_columns(cls, columns: Mapping[str, pl.Series], size: int) -> ItemFilters:
        """Takes raw columns, one value per candidate; null is none."""
        found = {}
        for name, series in columns.items():
            text = as_text(series)
            values = text.drop_nulls().unique().sort()
            codes = text.cast(pl.Enum(values)).to_physical().cast(pl.Int32)
            found[name] = (values.to_list(), codes.fill_null(-1).to_numpy())
        return cls(found, size)

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes."""
        return tuple(self._described())

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns number and some of the values of every attribute."""
        return {name: dict(about) for name, about in self._described().items()}

    def codes(self, chosen: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """Looks the values of a request up.

        Args:
          chosen: string [B, any] by attribute, padded with "".

        Returns:
          int32 [B, any] per attribute: 0 for "", -1 for a value no candidate has.
        """
        result = []
        for name, table in zip(self.names, self.tables, strict=True):
            codes = tf.cast(table.lookup(chosen[name]), tf.int32)
            result.append(tf.where(tf.equal(chosen[name], ""), 0, codes))
        return result

    def passing(self, codes: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns which candidates have one of the values of every attribute.

        Args:
          codes: int32 [any] per attribute, from `codes`; where all are 0 the attribute
            does not matter.

        Returns:
          bool [C].
        """
        result = tf.ones([self._size], tf.bool)
        for own, stored, about in zip(
            codes, self.stored, self._described().values(), strict=True
        ):
            result = _narrow(result, own, stored, about["values"])
        return result


def _narrow(
    passing: tf.Tensor, codes: tf.Tensor, stored: tf.Variable, values: int
) -> tf.Tensor:
    """Keeps the candidates that have one of the values, where any was chosen."""

    def having_one() -> tf.Tensor:
        known = tf.boolean_mask(codes, codes > 0)[:, tf.newaxis]
        wanted = tf.tensor_scatter_nd_update(
            tf.zeros([values + 1], tf.bool), known, tf.ones_like(known[:, 0], tf.bool)
        )
        return passing & tf.gather(wanted, stored)

    return tf.cond(tf.reduce_any(codes != 0), having_one, lambda: passing)


def search_passing(
    index: Index, query: tf.Tensor, passing: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the best of the candidates that pass, for one query.

    An exact index scores all candidates, which is faster than to pick some of them.
    With another, where few pass, these are scored. Else the index is searched, as much
    wider as they are rarer; should that find too few, all that pass are scored.

    Args:
      index: of C candidates.
      query: float32 [d].
      passing: bool [C].
      count: results, an int scalar, at most C.

    Returns:
      Inner products, float32 [count], best first, and positions, int32 [count]; -inf
      and `ABSENT` where fewer pass.
    """
    if index.is_exact:
        scores, positions = index.search(query[tf.newaxis], count, passing)
        return scores[0], positions[0]
    number = tf.math.count_nonzero(passing, dtype=tf.int32)

    def all_of_them() -> tuple[tf.Tensor, tf.Tensor]:
        positions = tf.cast(tf.where(passing)[:, 0], tf.int32)
        return best_of(index, query, positions, count)

    def search() -> tuple[tf.Tensor, tf.Tensor]:
        widening = index.size / tf.maximum(tf.cast(number, tf.float32), 1.0)
        scores, positions = index.search(query[tf.newaxis], count, passing, widening)
        found = tf.math.count_nonzero(positions != ABSENT, dtype=tf.int32)
        return tf.cond(
            found < tf.minimum(count, number),
            all_of_them,
            lambda: (scores[0], positions[0]),
        )

    return tf.cond(number <= index.size // _SPARSE, all_of_them, search)


def best_of(
    index: Index, query: tf.Tensor, positions: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores the candidates at some positions, a block at a time.

    Args:
      index: knows the vectors.
      query: float32 [d].
      positions: int32 [n], ascending; equal scores keep this order.
      count: results, an int scalar.

    Returns:
      As `search_passing` does.
    """

    def step(start: tf.Tensor, best: tf.Tensor, where: tf.Tensor) -> tuple:
        block = positions[start : start + _BLOCK]
        products = tf.linalg.matvec(index.take(block), query)
        best, order = tf.math.top_k(tf.concat([best, products], axis=0), count)
        return start + _BLOCK, best, tf.gather(tf.concat([where, block], axis=0), order)

    _, best, where = tf.while_loop(
        lambda start, *_: start < tf.size(positions),
        step,
        (
            tf.constant(0),
            tf.fill([count], np.float32(-np.inf)),
            tf.fill([count], np.int32(ABSENT)),
        ),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None]),
            tf.TensorShape([None]),
        ),
        parallel_iterations=1,
    )
    return best, where
