"""Batches from disk are those of a log in memory, in another order."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from test_sharded import config_of, write_events

from tfcsmf.config import HardestConfig
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.funnel import joint_lessons, with_later_events
from tfcsmf.data.prepare import prepare
from tfcsmf.data.query_rows import group_examples
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.local import prepare_sharded
from tfcsmf.data.sharded.stored_batches import StoredBatches
from tfcsmf.errors import ConfigError
from tfcsmf.negatives.hardest import HardestSampler
from tfcsmf.negatives.sampler import PoolSampler

SETTINGS = BatchSettings(
    batch_size=4,
    uniform_negatives=5,
    hard_negatives=0,
    history_length=4,
    seed=3,
    target_share=1.0,
    visible_share=1.0,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("log"), ("timestamp",))


def prepared(path, columns, **data):
    events = write_events(path / "events", size=90, users=6, items=9, columns=columns)
    config = config_of(events, split="leave_last_out", validation_users=3, **data)
    prepare_sharded(config, path / "out", shards=5)
    return PreparedFolder.open(path / "out")


def rows_of(batches, dataset):
    """Every row of some batches: user, positives, histories, excluded items."""
    found = []
    for batch in dataset:
        rows = {name: ids.numpy() for name, ids in batch["rows"].items()}
        items = batch["items"].numpy()
        users = rows["user_id"][batch["query"]["user_id"].numpy()]
        positives, excluded = (
            batch[name].numpy() for name in ("positives", "excluded_pairs")
        )
        ragged = {
            name: values.to_list()
            for name, values in batch["query"].items()
            if isinstance(values, tf.RaggedTensor)
        }
        for row, user in enumerate(users):
            columns = positives[positives[:, 0] == row, 1]
            others = excluded[excluded[:, 0] == row, 1]
            lists = []
            for name in sorted(batch["query"]):
                if name in ragged:
                    entries = ragged[name][row]
                    is_time = name.endswith("/time")
                    lists.append(
                        tuple(entries if is_time else rows["item_id"][entries])
                    )
            found.append(
                (int(user), frozenset(items[columns]), *lists, (items, items[others]))
            )
    return found


def keys(rows):
    return sorted((row[0], sorted(row[1]), *row[2:-1]) for row in rows)


@pytest.mark.parametrize(
    "columns", [("timestamp",), pytest.param((), marks=pytest.mark.slow)]
)
def test_an_epoch_has_every_row_once_with_its_histories(columns, tmp_path):
    folder, objective = prepared(tmp_path, columns), "cart"
    log = folder.read()
    stored = StoredBatches(
        folder, objective, dataclasses.replace(SETTINGS, batch_size=1), together=2
    )
    memory = StageBatches(log, objective, dataclasses.replace(SETTINGS, batch_size=1))
    steps = stored.steps_per_epoch()
    assert steps == memory.steps_per_epoch() == folder.rows(stored.level).sum()
    mine = rows_of(stored, stored.dataset(1.0, 0, 0, steps))
    theirs = rows_of(memory, memory.dataset(1.0, 0, 0, steps))
    assert keys(mine) == keys(theirs)
    # Known positives of the user are no negatives, and nothing else is left out.
    known = log.known[objective]
    by_row = {row: user for user, row in enumerate(log.users.id_rows) if row > 2}
    for user, *_, (items, excluded) in mine:
        if user in by_row:
            wanted = set(known.row(by_row[user])) & set(items)
            assert set(excluded) == wanted
    assert np.allclose(stored.probability, memory.probability, atol=1e-7)


def contents(dataset):
    """The numbers of some batches."""
    return [
        {
            "users": batch["rows"]["user_id"].numpy().tolist(),
            "items": batch["items"].numpy().tolist(),
            "positives": batch["positives"].numpy().tolist(),
            "seed": batch["seed"].numpy().tolist(),
        }
        for batch in dataset
    ]


def test_epochs_differ_and_are_repeated_exactly(folder):
    stored = StoredBatches(folder, "view", SETTINGS, together=3)
    steps = stored.steps_per_epoch()
    rows = int(folder.rows(0).sum())
    assert rows / 4 - 2 <= steps <= rows // 4
    found = contents(stored.dataset(1.0, 0, 0, 2 * steps))
    assert len(found) == 2 * steps
    assert found[:steps] != found[steps:]
    # A run that is continued sees the batches it would have seen.
    later = contents(stored.dataset(1.0, 0, steps + 1, 2 * steps))
    assert later == found[steps + 1 :]


@pytest.mark.slow
def test_a_share_of_the_rows_is_that_of_some_shards(folder):
    stored = StoredBatches(folder, "view", SETTINGS, together=1)
    shards = stored.subset(0.5)
    rows = folder.rows(0)
    assert 0.5 * rows.sum() <= rows[shards].sum() < rows.sum()
    steps = stored.steps_per_epoch(0.5)
    assert 1 <= steps <= rows[shards].sum() // 4
    found = contents(stored.dataset(0.5, 0, 0, steps))
    log = folder.read([folder.shards[number] for number in shards])
    users = {*range(3), *log.users.id_rows[log.train["view"].pairs.users]}
    assert {user for batch in found for user in batch["users"]} <= users


def assert_equal_batches(one, other):
    one = tf.nest.flatten(one, expand_composites=True)
    other = tf.nest.flatten(other, expand_composites=True)
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert (mine.numpy() == theirs.numpy()).all()


def samplers(folder):
    hardest = HardestSampler(folder.items.size, HardestConfig(draws=3), mixed=False)
    return {"view": None, "cart": hardest}


@pytest.mark.parametrize(
    "objective", ["view", pytest.param("cart", marks=pytest.mark.slow)]
)
def test_batches_of_one_pool_are_those_of_the_log_in_memory(folder, objective):
    log = with_later_events(folder.read())
    settings = dataclasses.replace(SETTINGS, sampler=samplers(folder)[objective])
    stored = StoredBatches(folder, objective, settings)
    memory = StageBatches(log, objective, settings)
    assert stored.num_examples == memory.num_examples
    for batch in assert_same_batches(stored, memory):
        assert "weight" not in batch
        assert ("own" in batch) == (objective == "cart")


def assert_same_batches(stored, memory):
    """Returns the batches; those of one pool and of memory are the same."""
    steps = stored.steps_per_epoch()
    assert steps == memory.steps_per_epoch()
    mine, theirs = (list(b.dataset(1.0, 1, 1, steps + 2)) for b in (stored, memory))
    for one, other in zip(mine, theirs, strict=True):
        assert_equal_batches(one, other)
    assert (stored.probability == memory.probability).all()
    return mine


@pytest.mark.parametrize("own", [False, True])
def test_rows_of_later_objectives_are_those_of_the_log_in_memory(folder, own):
    log, weights = with_later_events(folder.read()), [1.0, 3.0, 3.0]
    settings = SETTINGS
    if own:
        settings = dataclasses.replace(settings, sampler=samplers(folder)["cart"])
    opening = {"view": 0, "cart": 1, "buy": 2}
    lessons = joint_lessons(log, weights)
    memory = StageBatches(
        lessons.log, "view", settings, lessons.labels, log.objectives, opening
    )
    stored = StoredBatches(folder, "view", settings, weights, opening)
    assert stored.num_examples == memory.num_examples
    met = set()
    for batch in assert_same_batches(stored, memory):
        met |= set(batch["weight"].numpy().tolist())
    assert len(met) == 2


def test_hard_negatives_are_pairs_of_the_level_before_without_this_one(folder):
    settings = dataclasses.replace(SETTINGS, hard_negatives=4000, uniform_negatives=0)
    log = with_later_events(folder.read())
    memory = StageBatches(log, "cart", settings)
    stored = StoredBatches(folder, "cart", settings)
    np.testing.assert_allclose(stored.probability, memory.probability, rtol=1e-6)
    drawn = stored._draw_hard(tf.constant([1, 2])).numpy()
    found = np.bincount(drawn, minlength=log.items.size) / len(drawn)
    wanted = np.bincount(memory._hard, minlength=log.items.size) / len(memory._hard)
    assert (found[wanted == 0] == 0).all() and (wanted > 0).sum() > 3
    assert np.abs(found - wanted).max() < 0.03  # 4 standard errors at most
    # The first level has none before it.
    assert StoredBatches(folder, "view", settings).hard_negatives == 0


def test_to_continue_no_pool_is_read_that_is_over(folder):
    stored = StoredBatches(folder, "view", SETTINGS, together=1)
    last = stored.steps_per_epoch() - 1
    wanted = contents(stored.dataset(1.0, 0, last, last + 1))
    files, needed = stored._files, []
    for number in range(len(files)):
        stored._files = files.copy()
        stored._files[number] = "nowhere"
        try:
            assert contents(stored.dataset(1.0, 0, last, last + 1)) == wanted
        except tf.errors.NotFoundError:
            needed.append(number)
    assert len(needed) == 1  # of several shards


def test_negatives_of_earlier_batches_are_refused(folder):
    memory = PoolSampler(0, folder.items.size, memory=4)
    settings = dataclasses.replace(SETTINGS, sampler=memory)
    with pytest.raises(ConfigError, match="--events"):
        StoredBatches(folder, "cart", settings)


def test_users_of_many_events_have_the_rows_they_have_in_memory(tmp_path):
    folder = prepared(tmp_path, ("timestamp",), rows_per_user=2)
    stored = folder.read()
    config = config_of(
        str(tmp_path / "events"), split="leave_last_out", validation_users=3
    )
    log = with_later_events(prepare(config))
    for code, name in enumerate(log.objectives):
        expected = group_examples(log.train[name], rows_per_user=2)
        assert len(expected) < len(group_examples(log.train[name]))
        assert folder.rows(code).sum() == len(expected)
        found = group_examples(stored.train[name])
        for field in ("users", "offsets", "items", "history_end"):
            one, other = getattr(found, field), getattr(expected, field)
            np.testing.assert_array_equal(one, other)
