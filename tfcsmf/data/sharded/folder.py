"""Reads what a preparation in shards has left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.prepare import with_buckets
from tfcsmf.data.prepared import EntityTable, Histories, PreparedLog, Whole
from tfcsmf.data.sharded.block import Arrays, from_record
from tfcsmf.data.sharded.files import check_files, damaged, read_bytes, reading
from tfcsmf.data.sharded.merged import Merged, joined
from tfcsmf.data.sharded.store import (
    COUNTED,
    FORMAT,
    PARTS,
    PREPARED,
    checksum,
    shard_path,
)
from tfcsmf.errors import DataError

# Shards whose users are in memory at the same time.
TOGETHER = 16


@dataclass(frozen=True)
class PreparedFolder:
    """A log prepared in shards, opened.

    Attributes:
      path: of the folder.
      tree: contents of `prepared.json`.
      fingerprint: of the contents of all files.

    Example:
      >>> folder = PreparedFolder.open("prepared")  # doctest: +SKIP
      >>> log = folder.read(shards=[0])  # doctest: +SKIP
    """

    path: str
    tree: dict[str, Any]
    fingerprint: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PreparedFolder:
        """Opens a folder, and looks whether all its files are there and whole.

        Raises:
          DataError: if no preparation was finished there, or by an earlier version, or
            a file is missing or has another size. What is inside of files is checked
            when they are read.
        """
        path = os.fspath(path)
        file = posixpath.join(path, PREPARED)
        if not tf.io.gfile.exists(file):
            raise DataError(
                f"A prepared log should have a file {PREPARED}, which is written last. "
                f"Received: {path!r}, which has none. Prepare the log "
                "(pipelines/prepare.py) into an empty folder."
            )
        content = read_bytes(file)
        try:
            tree = json.loads(content)
            found = tree["format"]
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(file, f"it cannot be read ({error})") from error
        if found != FORMAT:
            raise DataError(
                f"A prepared log should have format {FORMAT}. Received: format {found} "
                f"in {path!r}, of another version. Prepare the log again "
                "(pipelines/prepare.py)."
            )
        folder = cls(path, tree, hashlib.sha256(content).hexdigest()[:16])
        check_files(path, tree)
        return folder

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
    def with_later(self) -> bool:
        """Pairs of later objectives are positives of the first one too."""
        return bool(self.tree["config"]["later_events"]) and len(self.objectives) > 1

    @property
    def shards(self) -> list[int]:
        """Numbers of the shards."""
        return [int(number) for number in self.tree["shards"]]

    @cached_property
    def users(self) -> EntityTable:
        """All users."""
        buckets = self.tree["config"]["data"]["hash_buckets"]
        met = self.tree["users_met"]
        return with_buckets(self._entities("users"), met, buckets)

    @cached_property
    def items(self) -> EntityTable:
        """The catalogue."""
        return self._entities("items")

    @cached_property
    def _counts(self) -> Arrays:
        return self._arrays(COUNTED)

    def item_counts(self, kind: str, code: int) -> np.ndarray:
        """Returns how often every item is met, int64 [C].

        Args:
          kind: "examples", "targets", "popularity" or "hard"; see
            `tfcsmf.data.sharded.block.Block`.
          code: of the objective; "hard" is not known of the first.
        """
        return self._counts[f"{kind}/{code}"]

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
          The log, with `whole`. Repeated examples are there once, ordered by user and
          histories; their times, where they are known, number the rows. With
          later events as positives of the first objective (`with_later`) they are
          among its examples, as `tfcsmf.data.funnel` has them, without weights.

        Raises:
          DataError: if a file is damaged.
        """
        shards = self.shards if shards is None else shards
        train = [self._train(number) for number in shards]
        log = self._log(train, self._histories(train), shards)
        queries = [self._queries(number) for number in shards]
        later = self._histories([test for _, test in queries])
        merged = self._merged
        return dataclasses.replace(
            log,
            validation=merged.evaluation(
                [validation for validation, _ in queries], log.train_histories
            ),
            test=merged.evaluation([test for _, test in queries], later),
            test_histories=later,
        )

    def sample(self, together: int = TOGETHER) -> PreparedLog:
        """Reads some users, and all validation queries: what a run has in memory.

        Args:
          together: shards that are read, of all of them evenly. Users are dealt out
            to shards by a hash of their ids, so these are users like all others.

        Returns:
          The log, with `whole`; without test queries.
        """
        shards = self.shards
        places = np.linspace(0, len(shards) - 1, min(together, len(shards)))
        chosen = [shards[place] for place in np.unique(places.astype(int))]
        train = [self._train(number) for number in chosen]
        queries = [self._queries(number, 1)[0] for number in shards]
        # Users of other shards whose validation queries have to be encoded.
        others = [
            block
            for number, block in zip(shards, queries, strict=True)
            if number not in set(chosen)
        ]
        histories = self._histories([*train, *others])
        log = self._log(train, histories, chosen)
        return dataclasses.replace(
            log, validation=self._merged.evaluation(queries, histories)
        )

    def test_parts(self, together: int = TOGETHER) -> Iterator[PreparedLog]:
        """Yields the test queries of all users, those of some shards at a time.

        Args:
          together: shards whose queries are read at the same time.

        Yields:
          Logs with `whole` that have test queries, their histories and, where an
          objective has no history, `known`.
        """
        shards = self.shards
        without_history = set(self.objectives) - set(self.history_events)
        for first in range(0, len(shards), together):
            some = shards[first : first + together]
            test = [self._queries(number)[1] for number in some]
            train = [self._train(number) for number in some] if without_history else []
            histories = self._histories(test)
            log = self._log(train, self._histories([]), some)
            yield dataclasses.replace(
                log,
                test=self._merged.evaluation(test, histories),
                test_histories=histories,
            )

    @property
    def _merged(self) -> Merged:
        return Merged(self.users.size, self.objectives, self.history_events)

    def _histories(self, blocks: list[Arrays]) -> Histories:
        return self._merged.histories(blocks, self.tree["times"])

    def _log(
        self, train: list[Arrays], histories: Histories, shards: Sequence[int]
    ) -> PreparedLog:
        """A log of some shards without queries."""
        names, merged = self.objectives, self._merged
        nothing = merged.evaluation([], histories)
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
            validation=nothing,
            test=nothing,
            test_histories=histories,
            known={
                name: merged.lists(train, f"known/{code}")
                for code, name in enumerate(names)
            },
            summary=self.tree["summary"],
            whole=self._whole(train, shards),
        )

    def _whole(self, train: list[Arrays], shards: Sequence[int]) -> Whole:
        users = np.arange(self.users.size, dtype=np.int32)
        if len(shards) < len(self.shards):
            users = np.sort(joined([block["users"] for block in train]))
        return Whole(
            users,
            **{
                kind: {
                    name: self.item_counts(kind, code)
                    for code, name in enumerate(self.objectives)
                }
                for kind in ("examples", "targets", "popularity")
            },
        )

    def _entities(self, role: str) -> EntityTable:
        ids = pl.read_parquet(io.BytesIO(self._table(f"{role}.parquet")))
        encoders = map(FeatureEncoder.from_dict, self.tree["encoders"][role])
        return EntityTable(
            ids["id"].to_numpy().astype(object),
            int(self.tree["summary"][role]["trained"]),
            tuple(encoders),
            self._arrays(f"{role}.npz"),
        )

    def _arrays(self, name: str) -> Arrays:
        with np.load(io.BytesIO(self._table(name))) as arrays:
            return dict(arrays)

    def _table(self, name: str) -> bytes:
        file = posixpath.join(self.path, name)
        content = read_bytes(file)
        if checksum(content) != self.tree["tables"][name]:
            raise damaged(file, "its contents have changed")
        return content

    def _train(self, shard: int) -> Arrays:
        return self._records(shard, "train", 1)[0]

    def _queries(self, shard: int, most: int = 2) -> list[Arrays]:
        """Reads the validation and the test queries of a shard."""
        return self._records(shard, "evaluation", most)

    def _records(self, shard: int, part: str, most: int) -> list[Arrays]:
        file = shard_path(self.path, part, shard)
        expected = self.tree["files"][str(shard)][PARTS.index(part)][:most]
        with reading(self.path):
            dataset = tf.data.TFRecordDataset(file).take(most)
            records = list(dataset.as_numpy_iterator())
        if [checksum(record) for record in records] != expected:
            raise damaged(file, "its contents have changed")
        return [from_record(record) for record in records]
