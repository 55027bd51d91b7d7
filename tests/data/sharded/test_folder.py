"""A prepared folder: damage is noticed, and parts of it are parts of the whole."""

import json
import shutil

import numpy as np
import pytest
from test_sharded import assert_equal, config_of, write_events

from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.errors import DataError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("log")
    events = write_events(path / "events", columns=("timestamp",))
    config = config_of(events, split="time", test_share=0.2, validation_users=9)
    prepare_sharded(config, path / "out", shards=6)
    return path / "out"


@pytest.fixture
def copy(path, tmp_path):
    return shutil.copytree(path, tmp_path / "copy")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "prepared.json").unlink(), "has none"),
        (lambda p: (p / "prepared.json").write_text('{"format"'), "cannot be read"),
        (lambda p: (p / "prepared.json").write_text('{"format": 1}'), "format 1"),
        (lambda p: (p / "users.parquet").unlink(), r"users.parquet.*missing"),
        (lambda p: (p / "train" / "00002.tfrecord").unlink(), r"00002.*missing"),
        (lambda p: (p / "evaluation" / "00003.tfrecord").write_bytes(b""), "0 bytes"),
    ],
)
def test_what_is_missing_or_short_is_noticed_at_once(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=f"(?s){message}.*pipelines/prepare.py"):
        PreparedFolder.open(copy)


def test_changed_contents_are_noticed_when_they_are_read(copy):
    reads = {
        copy / "items.parquet": lambda folder: folder.items,
        copy / "counts.npz": lambda folder: folder.item_counts("targets", 0),
        copy / "train" / "00001.tfrecord": lambda folder: folder.read([1]),
        copy / "evaluation" / "00001.tfrecord": lambda folder: folder.read([1]),
    }
    for file, read in reads.items():
        whole = file.read_bytes()
        flip(file)
        folder = PreparedFolder.open(copy)
        with pytest.raises(DataError, match="damaged"):
            read(folder)
        file.write_bytes(whole)
        read(PreparedFolder.open(copy))
    # Files of another preparation have other sums, whatever their size.
    shutil.copy(copy / "train" / "00002.tfrecord", copy / "train" / "00001.tfrecord")
    with pytest.raises(DataError, match="damaged"):
        PreparedFolder.open(copy).read([1])


def test_the_fingerprint_tells_contents_apart(path, copy):
    one = PreparedFolder.open(path).fingerprint
    assert PreparedFolder.open(copy).fingerprint == one
    tree = json.loads((copy / "prepared.json").read_text())
    tree["files"]["1"][0][0][1] += 1
    (copy / "prepared.json").write_text(json.dumps(tree))
    assert PreparedFolder.open(copy).fingerprint != one


def lists_of(histories, queries):
    """The histories of queries, however many others there are."""
    return [
        [
            lists.items[lists.offsets[user] : end].tolist()
            for user, end in zip(queries.users, queries.history_end[:, h], strict=True)
        ]
        for h, lists in enumerate(histories.lists.values())
    ]


def test_a_sample_has_some_users_and_all_validation_queries(path):
    folder = PreparedFolder.open(path)
    whole, sample = folder.read(), folder.sample(2)
    part = folder.read([folder.shards[0], folder.shards[-1]])
    assert 0 < len(sample.users_here) < len(whole.users_here) == whole.users.size
    assert_equal(sample.users_here, part.users_here)
    assert_equal(sample.known, part.known)
    for name in folder.objectives:
        one, other = sample.train[name], part.train[name]
        assert_equal(one.pairs, other.pairs)
        assert np.isin(one.pairs.users, sample.users_here).all()
        assert (sample.item_counts(name) == whole.item_counts(name)).all()
        one, other = sample.validation[name], whole.validation[name]
        assert len(one.users) > 0 and not np.isin(one.users, sample.users_here).all()
        for field in ("users", "targets", "seen", "met"):
            assert_equal(getattr(one, field), getattr(other, field), field)
        assert lists_of(sample.train_histories, one) == lists_of(
            whole.train_histories, other
        )
        assert len(sample.test[name].users) == 0
    # Of as many shards as there are it is the whole.
    assert_equal(folder.sample(6).train_histories, whole.train_histories)
    assert_equal(folder.sample(6).users_here, whole.users_here)


def test_parts_of_the_test_queries_are_all_of_them(path):
    folder = PreparedFolder.open(path)
    whole, parts = folder.read(), list(folder.test_parts(4))
    assert len(parts) == 2
    for name in folder.objectives:
        sets = [part.test[name] for part in parts]
        order = np.argsort(np.concatenate([queries.users for queries in sets]))
        other = whole.test[name]
        assert len(other.users) == len(order) > 0

        def rows(queries, key):
            lists = getattr(queries, key)
            return [lists.row(row).tolist() for row in range(len(queries.users))]

        for key in ("targets", "seen", "met"):
            found = sum((rows(queries, key) for queries in sets), [])
            assert [found[place] for place in order] == rows(other, key)
        found = [lists_of(p.test_histories, p.test[name]) for p in parts]
        joined = [sum(both, []) for both in zip(*found, strict=True)]
        wanted = lists_of(whole.test_histories, other)
        assert [[lists[place] for place in order] for lists in joined] == wanted
