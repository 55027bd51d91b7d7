"""The folder of a log prepared in shards: what is written into it, and where.

prepared.json            objectives, counts, encoders, shards; written last
users.parquet, .npz      ids by position, and encoded features; items likewise
train/00000.tfrecord     one shard of users as training reads it
evaluation/00000.tfrecord  their validation and test queries
"""

from __future__ import annotations

import dataclasses
import io
import json
import posixpath
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.kinds import check_ignored, encode_table, fit_encoders
from tfcsmf.data.prepare import describe_entities, wants_times, warn_of_empty
from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.sharded.block import COUNTS, Arrays, build_block, to_record
from tfcsmf.data.sharded.bucket import Bucket
from tfcsmf.data.sharded.pieces import Source
from tfcsmf.data.sharded.plan import Plan, Vocabulary
from tfcsmf.data.sharded.rounds import Facts, Round, side_table, summed
from tfcsmf.errors import DataError

PREPARED = "prepared.json"
PARTS = ("train", "evaluation")
_FORMAT = 1
_TARGETS = "targets.npz"
_TABLES = (
    _TARGETS,
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
        train, evaluation = build_block(bucket, plan, self._has_times)
        for part, arrays in zip(PARTS, (train, evaluation), strict=True):
            _write_record(shard_path(self.folder, part, bucket.number), arrays)
        facts: Facts = {"counts": evaluation["counts"]}
        numbers = range(len(plan.objectives))
        rows = [len(train[f"rows/{code}/users"]) for code in numbers]
        facts["shards"] = {bucket.number: [len(train["users"]), *rows]}
        for code in numbers:
            for name in ("lengths", "items"):
                values = pl.Series("id", train[f"rows/{code}/{name}"])
                facts[f"{name}/{code}"] = values.value_counts(name="rows")
        return facts

    def merge(self, facts: Iterable[Facts]) -> Facts:
        """See `Round.merge`."""
        facts = list(facts)
        merged: Facts = {
            "counts": np.sum([part["counts"] for part in facts], axis=0),
            "shards": {k: v for part in facts for k, v in part["shards"].items()},
        }
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
            if table is not None:
                missing[role] = _absent(vocabulary, table)
            self._write_entities(role, entities[role])
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
        tree = {
            "format": _FORMAT,
            "objectives": names,
            "history_events": plan.histories,
            "timed": self.source.time is not None,
            "times": self._has_times,
            "shards": {k: facts["shards"][k] for k in sorted(facts["shards"])},
            "row_lengths": [
                _pairs(facts[f"lengths/{code}"]) for code in range(len(names))
            ],
            "encoders": {
                role: [encoder.to_dict() for encoder in table.encoders]
                for role, table in entities.items()
            },
            "summary": summary,
        }
        targets = {
            str(code): _dense(facts[f"items/{code}"], entities["items"].size)
            for code in range(len(names))
        }
        self._write_arrays(_TARGETS, targets)
        write_bytes(posixpath.join(self.folder, PREPARED), json.dumps(tree).encode())
        return plan

    def _write_entities(self, role: str, table: EntityTable) -> None:
        buffer = io.BytesIO()
        pl.DataFrame({"id": pl.Series(table.ids, dtype=pl.String)}).write_parquet(
            buffer
        )
        write_bytes(posixpath.join(self.folder, f"{role}.parquet"), buffer.getvalue())
        self._write_arrays(f"{role}.npz", table.features)

    def _write_arrays(self, name: str, arrays: Arrays) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(posixpath.join(self.folder, name), buffer.getvalue())


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


def _write_record(path: str, arrays: Arrays) -> None:
    hidden = f"{path}.{uuid.uuid4().hex}.tmp"
    with tf.io.TFRecordWriter(hidden) as writer:
        writer.write(to_record(arrays))
    # A shard may be written twice, by a worker that was given up: the last one stays.
    tf.io.gfile.rename(hidden, path, overwrite=True)


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
