"""Rare users share rows by a hash: in memory, in an extension, and when serving."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.hashing import hash_ids
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import EntityTable
from tfcsmf.data.rows import NUM_RESERVED, UNKNOWN
from tfcsmf.data.schema import save_schema
from tfcsmf.retrieval.raw_inputs import UserTable

BUCKETS = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Users a to d with 4 training events each, r0 to r9 with one, t0 to t29 none."""
    rows = [(user, f"i{n}", "train") for user in "abcd" for n in range(4)]
    rows += [(f"r{n}", "i0", "train") for n in range(10)]
    rows += [(f"t{n}", "i1", "test") for n in range(30)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "split"], orient="row")
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    frame.with_columns(event=pl.lit("view")).write_parquet(path)
    data = {"events": str(path), "min_count": 2, "hash_buckets": BUCKETS}
    # None are taken out of training for validation.
    data["validation_users"] = 0
    return Config.from_dict({"data": data, "cascade": {"objectives": ["view"]}})


def test_rare_users_share_the_rows_of_their_buckets(config):
    log = prepare(config)
    users = log.users
    assert users.trained == 4 and users.ids[:4].tolist() == list("abcd")
    rows = dict(zip(users.ids, users.id_rows.tolist(), strict=True))
    assert [rows[name] for name in "abcd"] == [NUM_RESERVED + n for n in range(4)]
    rare = np.array([f"r{n}" for n in range(10)], object)
    used = sorted(set(tf.strings.to_hash_bucket_fast(list(rare), BUCKETS).numpy()))
    assert 1 < len(used) < BUCKETS
    for name in users.ids[4:]:
        bucket = int(tf.strings.to_hash_bucket_fast(name, BUCKETS))
        # Who comes to a bucket that nobody trained is unknown.
        wanted = NUM_RESERVED + 4 + used.index(bucket) if bucket in used else UNKNOWN
        assert rows[name] == wanted
    assert users.num_rows == NUM_RESERVED + 4 + len(used)
    assert log.summary["users"]["shared_rows"] == len(used)
    # Items below the cut are one and the same row, as ever.
    assert set(log.items.id_rows[log.items.trained :]) <= {UNKNOWN}


def test_without_buckets_they_are_unknown(config):
    data = config.data.model_copy(update={"hash_buckets": 0})
    log = prepare(config.model_copy(update={"data": data}))
    assert set(log.users.id_rows[4:]) == {UNKNOWN}
    assert log.users.num_rows == NUM_RESERVED + 4
    assert "user_buckets" not in save_schema(log)


def test_an_extension_keeps_the_rows(config):
    log = prepare(config)
    again = prepare(config, save_schema(log))
    rows = dict(zip(log.users.ids, log.users.id_rows.tolist(), strict=True))
    assert rows == dict(zip(again.users.ids, again.users.id_rows.tolist(), strict=True))
    assert again.users.num_rows == log.users.num_rows


class Lookup(tf.Module):
    def __init__(self, users):
        super().__init__()
        self.table = UserTable(users)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def rows(self, ids):
        return self.table.rows(ids)


def test_a_saved_model_looks_up_the_rows_of_training(config, tmp_path):
    users = prepare(config).users
    module = Lookup(users)
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    ids = users.ids.tolist()
    assert loaded.rows(tf.constant(ids)).numpy().tolist() == users.id_rows.tolist()
    new = [f"new{n}" for n in range(20)]
    wanted = users.buckets[hash_ids(np.array(new, object), BUCKETS)]
    assert len(set(wanted)) > 2
    assert loaded.rows(tf.constant(["", *new])).numpy().tolist() == [UNKNOWN, *wanted]
    plain = UserTable(EntityTable(users.ids, users.trained, (), {}))
    assert set(plain.rows(tf.constant(ids[4:])).numpy()) == {UNKNOWN}


def test_ids_are_hashed_in_blocks(monkeypatch):
    ids = np.array([f"u{n}" for n in range(25)], object)
    whole = hash_ids(ids, 1000)
    monkeypatch.setattr("tfcsmf.data.hashing._BLOCK", 7)
    assert hash_ids(ids, 1000).tolist() == whole.tolist()
    assert len(set(whole.tolist())) > 20
    assert hash_ids(ids[:0], 1000).tolist() == []
