"""The folder of a log prepared in shards: what is written into it, and where.

prepared.json            objectives, configuration, encoders, files; written last
users.parquet, .npz      ids by position, and encoded features; items likewise
counts.npz               how often items are met in training
train/00000.tfrecord     one shard of users as training reads it
evaluation/00000.tfrecord  their validation and test queries, a record each
"""

from __future__ import annotations

import dataclasses
import io
import json
import posixpath
import uuid
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.kinds import check_ignored, encode_table, fit_encoders
from tfcsmf.data.log import warn_of_missing_rows
from tfcsmf.data.prepare import (
    describe_entities,
    wants_times,
    warn_of_empty,
    with_buckets,
)
from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.sharded.block import COUNTS, Arrays, build_block, to_record
from tfcsmf.data.sharded.bucket import Bucket
from tfcsmf.data.sharded.pieces import Source
from tfcsmf.data.sharded.plan import Plan, Vocabulary
from tfcsmf.data.sharded.rounds import Facts, Round, side_table, summed
from tfcsmf.data.sharded.settings import prepared_settings
from tfcsmf.errors import DataError

PREPARED = "prepared.json"
PARTS = ("train", "evaluation")
FORMAT = 2
COUNTED = "counts.npz"
_TABLES = (
    COUNTED,
    *(f"{role}.{kind}" for role in ("users", "items") for kind in ("parquet", "npz")),
)


def shard_path(folder: str, part: str, shard: int) -> str:
    """Returns the file of a shard; `part` is one of `PARTS`."""
    return posixpath.join(folder, part, f"{shard:05d}.tfrecord")


@dataclasses.dataclass(frozen=True)
class Write(Round):
    """Writes every shard, and what is known of the whole log at the end.

    Attributes:
      config: of the preparation.
      source: of the log.
      folder: to write into.
    """

    config: Config
    source: Source
    folder: str

    @property
    def _has_times(self) -> bool:
        """Histories say when their entries happened."""
        return self.source.time is not None and wants_times(self.config)

    def facts(self, bucket: Bucket, plan: Plan) -> Facts:
        """See `Round.facts`."""
        later = self.config.cascade.later_weight > 0
        block = build_block(bucket, plan, self._has_times, later)
        files = [
            _write_records(shard_path(self.folder, part, bucket.number), records)
            for part, records in zip(
                PARTS, ([block.train], block.evaluation), strict=True
            )
        ]
        numbers = range(len(plan.objectives))
        rows = [len(block.train[f"rows/{code}/users"]) for code in numbers]
        facts: Facts = {
            "counts": block.counts,
            "later": np.array([block.later]),
            "shards": {bucket.number: [len(block.train["users"]), *rows]},
            "files": {bucket.number: files},
        }
        items = {f"items/{name}": values for name, values in block.items.items()}
        for code in numbers:
            items[f"lengths/{code}"] = block.train[f"rows/{code}/lengths"]
        for name, values in items.items():
            ids = pl.Series("id", values.astype(np.int32))
            facts[name] = ids.value_counts(name="rows")
        return facts

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = list(facts)
        merged: Facts = {
            name: np.sum([part[name] for part in facts], axis=0)
            for name in ("counts", "later")
        }
        for name in ("shards", "files"):
            merged[name] = {k: v for part in facts for k, v in part[name].items()}
        for name in facts[0].keys() - merged.keys():
            merged[name] = summed([part[name] for part in facts], "id")
        return merged

    def decide(self, plan: Plan, facts: Facts) -> Plan:
        """Writes the tables and `prepared.json`; the plan stays as it is."""
        data = self.config.data
        tables = {
            role: side_table(getattr(data, role), key, self.config)
            for role, key in (("users", "user_id"), ("items", "item_id"))
        }
        check_ignored([tables["items"], tables["users"]], data.ignore)
        entities, notes, missing = {}, {}, {}
        written: dict[str, list[int]] = {}
        for role, table in tables.items():
            vocabulary = getattr(plan, role)
            declared = (
                data.query_features if role == "users" else data.candidate_features
            )
            encoders, notes[role] = fit_encoders(table, declared, data, role)
            order = np.argsort(vocabulary.positions)
            ids = vocabulary.ids.gather(order).to_numpy().astype(object)
            features = encode_table(table, ids, encoders)
            entities[role] = EntityTable(ids, vocabulary.trained, encoders, features)
            if role == "users":
                entities[role] = with_buckets(
                    entities[role], vocabulary.met, data.hash_buckets
                )
            if table is not None:
                missing[role] = _absent(vocabulary, table)
                met = pl.Series(vocabulary.positions < vocabulary.met)
                warn_of_missing_rows(vocabulary.ids.filter(met), table)
            written |= self._write_entities(role, entities[role])
        names = plan.objectives
        counts = facts["counts"].tolist()
        summary: dict[str, Any] = {
            "source": data.events,
            **plan.read,
            "time_column": self.source.time,
            "entities_without_features": missing,
            "split": plan.method,
            "validation_carved": [names[code] for code in plan.lacking],
            "history_length": data.history_length,
            "users": describe_entities(entities["users"]),
            "items": describe_entities(entities["items"]),
            "features_left_out": notes,
            "events": {
                name: dict(zip(COUNTS, row, strict=True))
                for name, row in zip(names, counts, strict=True)
            },
        }
        warn_of_empty(summary["events"])
        size = entities["items"].size
        written |= self._write_arrays(
            COUNTED,
            {
                name.removeprefix("items/"): _dense(facts[name], size)
                for name in sorted(facts)
                if name.startswith("items/")
            },
        )
        tree = {
            "format": FORMAT,
            "objectives": names,
            "history_events": plan.histories,
            "timed": self.source.time is not None,
            "times": self._has_times,
            "later": facts["later"].tolist(),
            "users_met": plan.users.met if plan.users else 0,
            "shards": {k: facts["shards"][k] for k in sorted(facts["shards"])},
            "row_lengths": [
                _pairs(facts[f"lengths/{code}"]) for code in range(len(names))
            ],
            "encoders": {
                role: [encoder.to_dict() for encoder in table.encoders]
                for role, table in entities.items()
            },
            "summary": summary,
            "config": prepared_settings(self.config),
            "tables": written,
            "files": {k: facts["files"][k] for k in sorted(facts["files"])},
        }
        write_bytes(posixpath.join(self.folder, PREPARED), json.dumps(tree).encode())
        return plan

    def _write_entities(self, role: str, table: EntityTable) -> dict[str, list[int]]:
        buffer = io.BytesIO()
        ids = pl.DataFrame({"id": pl.Series(table.ids, dtype=pl.String)})
        ids.write_parquet(buffer)
        name = f"{role}.parquet"
        content = buffer.getvalue()
        write_bytes(posixpath.join(self.folder, name), content)
        return {name: checksum(content)} | self._write_arrays(
            f"{role}.npz", table.features
        )

    def _write_arrays(self, name: str, arrays: Arrays) -> dict[str, list[int]]:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
        write_bytes(posixpath.join(self.folder, name), content)
        return {name: checksum(content)}


def checksum(content: bytes) -> list[int]:
    """Returns the length and the CRC of a file or record."""
    return [len(content), zlib.crc32(content)]


def check_target(folder: str) -> None:
    """Makes the folder of a preparation, or empties that of an unfinished one.

    Raises:
      DataError: if it holds a finished one, or anything else.
    """
    present = tf.io.gfile.listdir(folder) if tf.io.gfile.exists(folder) else []
    names = {name.rstrip("/") for name in present}
    if names - {*PARTS, *_TABLES}:
        raise DataError(
            "A log is prepared into a folder that is empty or does not exist. "
            f"Received: {folder!r}, which holds {sorted(names)}. Name another "
            "--output, or delete it."
        )
    for part in PARTS:
        path = posixpath.join(folder, part)
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)
        tf.io.gfile.makedirs(path)


def write_bytes(path: str, content: bytes) -> None:
    """Writes a whole file, or nothing, wherever TensorFlow can write."""
    hidden = f"{path}.{uuid.uuid4().hex}.tmp"
    with tf.io.gfile.GFile(hidden, "wb") as file:
        file.write(content)
    tf.io.gfile.rename(hidden, path, overwrite=True)


def _write_records(path: str, records: Iterable[Arrays]) -> list[list[int]]:
    """Writes a file of records; returns the checksum of each."""
    hidden = f"{path}.{uuid.uuid4().hex}.tmp"
    contents = [to_record(arrays) for arrays in records]
    with tf.io.TFRecordWriter(hidden) as writer:
        for content in contents:
            writer.write(content)
    # A shard may be written twice, by a worker that was given up: the last one stays.
    tf.io.gfile.rename(hidden, path, overwrite=True)
    return [checksum(content) for content in contents]


def _absent(vocabulary: Vocabulary, table: pl.DataFrame) -> int:
    """Number of distinct ids of the log that the table does not have."""
    # All ids are of the log or the table.
    return len(vocabulary.ids) - table.height


def _pairs(counts: pl.DataFrame) -> list[list[int]]:
    return [list(row) for row in counts.sort("id").iter_rows()]


def _dense(counts: pl.DataFrame, size: int) -> np.ndarray:
    dense = np.zeros(size, np.int64)
    dense[counts["id"].to_numpy()] = counts["rows"].to_numpy()
    return dense
