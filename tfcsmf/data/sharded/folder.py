"""Reads what a preparation in shards has left behind."""

from __future__ import annotations

import io
import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.prepared import (
    Csr,
    EntityTable,
    EvaluationSet,
    Examples,
    Histories,
    Pairs,
    PreparedLog,
)
from tfcsmf.data.rows import NO_TIME
from tfcsmf.data.sharded.block import Arrays, from_record
from tfcsmf.data.sharded.store import PREPARED, shard_path
from tfcsmf.errors import DataError


@dataclass(frozen=True)
class PreparedFolder:
    """A log prepared in shards, opened.

    Attributes:
      path: of the folder.
      tree: contents of `prepared.json`.

    Example:
      >>> folder = PreparedFolder.open("prepared")  # doctest: +SKIP
      >>> log = folder.read(shards=[0])  # doctest: +SKIP
    """

    path: str
    tree: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PreparedFolder:
        """Opens a folder.

        Raises:
          DataError: if no preparation was finished there.
        """
        path = os.fspath(path)
        file = posixpath.join(path, PREPARED)
        if not tf.io.gfile.exists(file):
            raise DataError(
                f"A prepared log should have a file {PREPARED}, which is written last. "
                f"Received: {path!r}, which has none. Prepare the log "
                "(pipelines/prepare.py) into an empty folder."
            )
        return cls(path, json.loads(_read(file)))

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives in cascade order."""
        return tuple(self.tree["objectives"])

    @property
    def history_events(self) -> tuple[str, ...]:
        """Events of the histories."""
        return tuple(self.tree["history_events"])

    @property
    def timed(self) -> bool:
        """Histories end before the examples happened; see `QueryRows`."""
        return bool(self.tree["timed"])

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards."""
        return [int(number) for number in self.tree["shards"]]

    @cached_property
    def users(self) -> EntityTable:
        """All users."""
        return self._entities("users")

    @cached_property
    def items(self) -> EntityTable:
        """The catalogue."""
        return self._entities("items")

    @cached_property
    def targets(self) -> list[np.ndarray]:
        """How often every item is a positive of a row, int64 [C] by objective."""
        arrays = self._arrays("targets.npz")
        return [arrays[str(code)] for code in range(len(self.objectives))]

    def rows(self, code: int) -> np.ndarray:
        """Returns the training rows of an objective in every shard, int64 [shards]."""
        counts = self.tree["shards"].values()
        return np.array([row[1 + code] for row in counts], np.int64)

    def train_files(self) -> list[str]:
        """Returns the files of the shards, as training reads them."""
        return [shard_path(self.path, "train", number) for number in self.shards]

    def read(self, shards: Sequence[int] | None = None) -> PreparedLog:
        """Reads users into memory.

        Args:
          shards: which; users of others have no histories, examples and queries.
            Default: all.

        Returns:
          The log. Repeated examples are there once, ordered by user and histories, and
          the times of examples say only whether they are known.
        """
        shards = self.shards if shards is None else shards
        train, evaluation = (
            [self._record(shard_path(self.path, part, number)) for number in shards]
            for part in ("train", "evaluation")
        )
        names = self.objectives
        merged = _Merged(self.users.size, len(self.history_events))
        histories = merged.histories(train, "", self.history_events)
        later = merged.histories(evaluation, "test/", self.history_events)
        return PreparedLog(
            objectives=names,
            history_events=self.history_events,
            users=self.users,
            items=self.items,
            train={
                name: merged.examples(train, code, histories, self.timed)
                for code, name in enumerate(names)
            },
            train_histories=histories,
            validation={
                name: merged.evaluation(evaluation, "validation", code, histories)
                for code, name in enumerate(names)
            },
            test={
                name: merged.evaluation(evaluation, "test", code, later)
                for code, name in enumerate(names)
            },
            test_histories=later,
            known={
                name: merged.lists(train, f"known/{code}", "")
                for code, name in enumerate(names)
            },
            summary=self.tree["summary"],
        )

    def _entities(self, role: str) -> EntityTable:
        ids = pl.read_parquet(
            io.BytesIO(_read(posixpath.join(self.path, f"{role}.parquet")))
        )
        encoders = map(FeatureEncoder.from_dict, self.tree["encoders"][role])
        return EntityTable(
            ids["id"].to_numpy().astype(object),
            int(self.tree["summary"][role]["trained"]),
            tuple(encoders),
            self._arrays(f"{role}.npz"),
        )

    def _arrays(self, name: str) -> Arrays:
        with np.load(io.BytesIO(_read(posixpath.join(self.path, name)))) as arrays:
            return dict(arrays)

    @staticmethod
    def _record(path: str) -> Arrays:
        (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
        return from_record(record)


@dataclass(frozen=True)
class _Merged:
    """Puts the arrays of several shards together.

    Attributes:
      num_users: of the whole log.
      num_histories: columns of ends.
    """

    num_users: int
    num_histories: int

    def lists(self, blocks: list[Arrays], name: str, prefix: str) -> Csr:
        """Lists per user over all positions."""
        users, lengths, items = self._sorted(blocks, name, prefix, "items")
        sizes = np.zeros(self.num_users, np.int64)
        sizes[users] = lengths
        return Csr(np.append(0, np.cumsum(sizes)), items)

    def histories(
        self, blocks: list[Arrays], prefix: str, events: Sequence[str]
    ) -> Histories:
        lists, times = {}, {}
        for number, event in enumerate(events):
            name = f"{prefix}history/{number}"
            lists[event] = self.lists(blocks, name, prefix)
            if blocks and f"{name}/times" in blocks[0]:
                times[event] = self._sorted(blocks, name, prefix, "times")[2]
        return Histories(lists, None, times or None)

    def examples(
        self, blocks: list[Arrays], code: int, histories: Histories, timed: bool
    ) -> Examples:
        name = f"rows/{code}"
        users = _joined([block["users"][block[f"{name}/users"]] for block in blocks])
        lengths = _joined([block[f"{name}/lengths"] for block in blocks])
        ends = _joined([block[f"{name}/ends"] for block in blocks])
        order = np.argsort(users, kind="stable")
        ends = self._absolute(ends, users, histories)[order]
        items = _gather(
            _joined([block[f"{name}/items"] for block in blocks]), lengths, order
        )
        lengths, users = lengths[order], users[order]
        times = np.full(len(items), 0 if timed else NO_TIME, np.int64)
        pairs = Pairs(np.repeat(users, lengths), items, times)
        return Examples(pairs, np.repeat(ends, lengths, axis=0))

    def evaluation(
        self, blocks: list[Arrays], part: str, code: int, histories: Histories
    ) -> EvaluationSet:
        name = f"{part}/{code}"
        users = _joined(
            [block[f"{part}/users"][block[f"{name}/users"]] for block in blocks]
        )
        order = np.argsort(users)
        ends = _joined([block[f"{name}/ends"] for block in blocks])
        ends = self._absolute(ends, users, histories)

        def lists(key: str) -> Csr:
            lengths = _joined([block[f"{name}/{key}/lengths"] for block in blocks])
            items = _joined([block[f"{name}/{key}/items"] for block in blocks])
            offsets = np.append(0, np.cumsum(lengths[order])).astype(np.int64)
            return Csr(offsets, _gather(items, lengths, order))

        return EvaluationSet(
            users[order], lists("targets"), ends[order], lists("seen"), lists("met")
        )

    def _absolute(
        self, ends: np.ndarray, users: np.ndarray, histories: Histories
    ) -> np.ndarray:
        ends = ends.reshape(len(users), self.num_histories).astype(np.int64)
        starts = [lists.offsets[users] for lists in histories.lists.values()]
        return ends + np.stack(starts, axis=1) if starts else ends

    def _sorted(
        self, blocks: list[Arrays], name: str, prefix: str, key: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        users = _joined([block[f"{prefix}users"] for block in blocks])
        lengths = _joined([block[f"{name}/lengths"] for block in blocks])
        values = _joined([block[f"{name}/{key}"] for block in blocks])
        order = np.argsort(users)
        return users[order], lengths[order], _gather(values, lengths, order)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _gather(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Puts lists that lie one after the other into another order."""
    starts = (np.cumsum(lengths) - lengths)[order]
    sizes = lengths[order]
    begins = np.cumsum(sizes) - sizes
    return values[np.repeat(starts - begins, sizes) + np.arange(sizes.sum())]


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())
