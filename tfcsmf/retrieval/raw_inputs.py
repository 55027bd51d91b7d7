"""Raw request inputs, as clients send them, to encoded tower inputs.

Everything here runs inside the exported model, with TensorFlow operations only.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID, history_name, time_name
from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.rows import NUM_RESERVED, PADDING, UNKNOWN
from tfcsmf.retrieval.exact_index import ABSENT

# Argument names that mean something else in a signature.
RESERVED = ("objective_weights", "exclude_item_ids", "k", "self", "training")


def argument_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a legal and distinct signature argument for every input name.

    Argument names of a SavedModel are identifiers: other characters become "_",
    and a number is appended where two names would meet.

    Example:
      >>> argument_names(["history_add to cart", "history_add-to-cart", "2nd"])
      ... # doctest: +NORMALIZE_WHITESPACE
      {'history_add to cart': 'history_add_to_cart',
       'history_add-to-cart': 'history_add_to_cart_2', '2nd': 'x2nd'}
    """
    result: dict[str, str] = {}
    # TensorFlow compares node names without case.
    taken = {name.lower() for name in RESERVED}
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_]", "_", name)
        if not base[:1].isalpha():
            base = f"x{base}"
        if keyword.iskeyword(base):
            base = f"{base}_"
        argument, number = base, 1
        while argument.lower() in taken:
            number += 1
            argument = f"{base}_{number}"
        taken.add(argument.lower())
        result[name] = argument
    return result


def string_table(keys: Sequence[str], values: np.ndarray, default: int) -> Any:
    """Returns a lookup table; "" has the default, and no keys are legal too."""
    # Python strings may repeat "", which stands for "nothing" in every input.
    chosen = [index for index, key in enumerate(keys) if key != ""]
    names = tf.constant(["", *(keys[index] for index in chosen)], tf.string)
    rows = np.concatenate([[default], np.asarray(values)[chosen]]).astype(np.int64)
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(names, tf.constant(rows)), default
    )


class ItemTable(tf.Module):
    """Item ids to catalogue positions and embedding rows, and back.

    Args:
      items: the catalogue.
    """

    def __init__(self, items: EntityTable) -> None:
        super().__init__()
        self._trained = items.trained
        keys = [str(name) for name in items.ids]
        # The first is the name of `ABSENT`.
        self.ids = tf.Variable(tf.constant(["", *keys], tf.string), trainable=False)
        self.table = string_table(keys, np.arange(items.size), ABSENT)

    def positions(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns catalogue positions, int32; `ABSENT` for unknown ids."""
        return tf.cast(self.table.lookup(ids), tf.int32)

    def rows(self, ids: tf.Tensor, unknown: int) -> tf.Tensor:
        """Returns embedding rows, int32; `unknown` where an id was not trained."""
        positions = self.positions(ids)
        trained = (positions >= 0) & (positions < self._trained)
        return tf.where(trained, positions + NUM_RESERVED, unknown)

    def names(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns item ids, string; "" for `ABSENT`."""
        return tf.gather(self.ids, positions - ABSENT)


class UserTable(tf.Module):
    """User ids to embedding rows.

    Args:
      users: the users.
    """

    def __init__(self, users: EntityTable) -> None:
        super().__init__()
        ids = [str(name) for name in users.ids[: users.trained]]
        rows = np.arange(users.trained) + NUM_RESERVED
        self.table = string_table(ids, rows, UNKNOWN)
        self._size = len(users.buckets)
        if self._size:
            self.buckets = tf.Variable(users.buckets, trainable=False)

    def rows(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns embedding rows, int32; `UNKNOWN` for "".

        Others without a row of their own share one by a hash, if users did in training.
        """
        rows = tf.cast(self.table.lookup(ids), tf.int32)
        if not self._size:
            return rows
        places = tf.strings.to_hash_bucket_fast(ids, self._size)
        shared = tf.equal(rows, UNKNOWN) & tf.not_equal(ids, "")
        return tf.where(shared, tf.gather(self.buckets, places), rows)


class Features(tf.Module):
    """Feature encoders, with their vocabularies inside the saved model.

    Args:
      encoders: fitted encoders.
    """

    def __init__(self, encoders: Sequence[FeatureEncoder]) -> None:
        super().__init__()
        # Only tracked tables are saved; a closure hides what TensorFlow cannot track.
        self.lookups = [
            table for encoder in encoders if (table := encoder.build_lookup())
        ]
        self._encoders = lambda: tuple(encoders)

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every raw input."""
        return {encoder.name: _spec(encoder) for encoder in self._encoders()}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns kind and width of every raw input, as JSON-able values."""
        return {
            encoder.name: {"kind": encoder.kind, "width": encoder.width}
            for encoder in self._encoders()
        }

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes raw values by feature name."""
        return {
            encoder.name: encoder.encode_tensor(raw[encoder.name])
            for encoder in self._encoders()
        }


def _spec(encoder: FeatureEncoder) -> tf.TensorSpec:
    if encoder.kind == "numeric":
        return tf.TensorSpec([None], tf.float32)
    if encoder.kind == "vector":
        return tf.TensorSpec([None, encoder.width], tf.float32)
    shape = [None, None] if encoder.kind == "multi" else [None]
    return tf.TensorSpec(shape, tf.string)


class QueryRawInputs(tf.Module):
    """Encodes `user_id`, histories and user features.

    Args:
      users: the users.
      items: the catalogue, for histories.
      history_events: events with a history.
      history_length: known items kept per history, the last ones.
      with_times: also take when the items of histories were met.
    """

    def __init__(
        self,
        users: EntityTable,
        items: ItemTable,
        history_events: Sequence[str],
        history_length: int,
        with_times: bool = False,
    ) -> None:
        super().__init__()
        self.users = UserTable(users)
        self.items = items
        self.features = Features(users.encoders)
        self._histories = tuple(history_name(event) for event in history_events)
        self._times = tuple(time_name(e) for e in history_events if with_times)
        self._length = history_length

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every raw input, by its own name."""
        histories = {
            name: tf.TensorSpec([None, None], tf.string) for name in self._histories
        }
        times = {name: tf.TensorSpec([None, None], tf.int64) for name in self._times}
        user = {QUERY_ID: tf.TensorSpec([None], tf.string)}
        return user | histories | times | self.features.specs()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns the kind of every raw input, as JSON-able values."""
        histories = {name: {"kind": "history"} for name in self._histories}
        times = {name: {"kind": "times"} for name in self._times}
        user = {QUERY_ID: {"kind": "id"}}
        return user | histories | times | self.features.describe()

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes raw values; histories are given oldest first, as a log is.

        Encoded histories are of one length, padded with `PADDING`. Times are of the
        same length; one that is not given is 0.
        """
        inputs = {QUERY_ID: self.users.rows(raw[QUERY_ID])}
        if self._histories:
            histories = [raw[name] for name in self._histories]
            inputs |= zip(self._histories, self._encode(histories), strict=True)
        if self._times:
            width = tf.shape(inputs[self._histories[0]])[1]
            for name in self._times:
                padded = tf.pad(raw[name], [[0, 0], [0, width]])
                inputs[name] = padded[:, :width]
        return inputs | self.features(raw)

    def _encode(self, histories: list[tf.Tensor]) -> list[tf.Tensor]:
        """Encodes all histories at once: a request is mostly small operations."""
        lengths = [tf.shape(history)[1] for history in histories]
        longest = tf.reduce_max(tf.stack(lengths))
        padded = [
            tf.pad(history, [[0, 0], [0, longest - length]], constant_values="")
            for history, length in zip(histories, lengths, strict=True)
        ]
        rows = self.items.rows(tf.stack(padded), PADDING)  # [H, B, longest]
        known = tf.cast(tf.not_equal(rows, PADDING), tf.int32)
        # From the newest back. The order is kept as it is in training: sums of the
        # same numbers in another order are not bit-equal.
        recent = tf.cumsum(known, axis=2, reverse=True) <= self._length
        return tf.unstack(tf.where(recent, rows, PADDING))


class CandidateRawInputs(tf.Module):
    """Encodes `item_id` and item features.

    Args:
      items: the catalogue.
      table: its ids.
    """

    def __init__(self, items: EntityTable, table: ItemTable) -> None:
        super().__init__()
        self.items = table
        self.features = Features(items.encoders)

    def specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the type of every raw input, by its own name."""
        return {CANDIDATE_ID: tf.TensorSpec([None], tf.string)} | self.features.specs()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Returns the kind of every raw input, as JSON-able values."""
        return {CANDIDATE_ID: {"kind": "id"}} | self.features.describe()

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encodes raw values."""
        ids = self.items.rows(raw[CANDIDATE_ID], UNKNOWN)
        return {CANDIDATE_ID: ids} | self.features(raw)
