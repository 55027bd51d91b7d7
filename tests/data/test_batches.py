"""Training batches: pure functions of their number, complete epochs, no leaks."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.batches import (
    BatchSettings,
    StageBatches,
    known_lists,
    known_pairs,
)
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import Csr, Examples, Pairs
from tfcsmf.data.rows import NUM_RESERVED

SETTINGS = BatchSettings(
    batch_size=32, uniform_negatives=8, hard_negatives=4, history_length=6, seed=3
)


def make(log, objective="click", **changes):
    return StageBatches(log, objective, dataclasses.replace(SETTINGS, **changes))


def flat(batch):
    return {
        "/".join(path): value
        for path, value in (
            ((outer, inner), tensor)
            for outer, tensors in batch.items()
            for inner, tensor in (
                tensors.items() if isinstance(tensors, dict) else [("", tensors)]
            )
        )
    }


def as_numpy(value):
    if isinstance(value, tf.RaggedTensor):
        # Lists joined by a separator that is no row.
        return value.to_tensor(-1).numpy()
    return value.numpy()


def numpy_of(dataset):
    return [
        {name: as_numpy(value) for name, value in flat(batch).items()}
        for batch in dataset
    ]


def hidden(batch):
    """Excluded pairs as a matrix, bool [rows, columns]."""
    pairs = batch["excluded_pairs/"]
    assert (np.diff(pairs[:, 0]) >= 0).all()
    matrix = np.zeros([len(batch["query/user_id"]), len(batch["items/"])], bool)
    matrix[tuple(pairs.T)] = True
    return matrix


def users_of(batch):
    return batch["rows/user_id"][batch["query/user_id"]] - NUM_RESERVED


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def with_examples(log, objective, keep):
    """The log with some of an objective's examples only."""
    old = log.train[objective]
    pairs = Pairs(old.pairs.users[keep], old.pairs.items[keep], old.pairs.times[keep])
    new = Examples(pairs, old.history_end[keep])
    return dataclasses.replace(log, train=log.train | {objective: new})


def test_a_batch_is_a_function_of_seed_stage_phase_and_number(tiny_log):
    batches = make(tiny_log)
    per_epoch = batches.steps_per_epoch()
    last = 2 * per_epoch + 2
    all_of_them = numpy_of(batches.dataset(1.0, 0, 0, last))
    assert_same(numpy_of(make(tiny_log).dataset(1.0, 0, 0, last)), all_of_them)
    for first in (1, per_epoch, per_epoch + 1):
        later = numpy_of(batches.dataset(1.0, 0, first, last))
        assert_same(later, all_of_them[first:])

    def items(**changes):
        options = {"phase": 0, "seed": 3, "objective": "click"} | changes
        stage = make(tiny_log, options["objective"], seed=options["seed"])
        (batch,) = numpy_of(stage.dataset(1.0, options["phase"], 0, 1))
        return batch["items/"]

    base = items()
    for changes in ({"phase": 1}, {"seed": 4}, {"objective": "conversion"}):
        other = items(**changes)
        assert not np.array_equal(other[:32], base[:32])
        assert not np.array_equal(other[32:40], base[32:40])


def test_steps_differ_in_order_negatives_and_dropout(tiny_log):
    batches = make(tiny_log)
    per_epoch = batches.steps_per_epoch()
    steps = numpy_of(batches.dataset(1.0, 0, 0, 2 * per_epoch))
    for part in (slice(0, 32), slice(32, 40), slice(40, 44)):
        drawn = {tuple(batch["items/"][part]) for batch in steps}
        assert len(drawn) == len(steps)
    assert len({tuple(batch["seed/"]) for batch in steps}) == len(steps)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("batch_size", [32, 7])
def test_every_example_once_per_epoch_up_to_the_remainder(tiny_log, share, batch_size):
    batches = make(tiny_log, batch_size=batch_size, uniform_negatives=0)
    chosen = batches.subset(share)
    per_epoch = batches.steps_per_epoch(share)
    assert per_epoch == len(chosen) // batch_size
    assert len(chosen) == round(share * len(batches.examples.pairs))
    assert len(np.unique(chosen)) == len(chosen)
    numbers = tf.constant(chosen)
    orders = []
    for epoch in range(2):
        # The rows themselves, before anything is looked up.
        batches._assemble = lambda rows, _: {"examples": rows}
        part = batches.dataset(share, 0, epoch * per_epoch, (epoch + 1) * per_epoch)
        met = np.concatenate([batch["examples"] for batch in part])
        assert len(met) == per_epoch * batch_size
        assert len(np.unique(met)) == len(met)
        assert np.isin(met, numbers).all()
        orders.append(met)
    assert not np.array_equal(orders[0], orders[1])


def test_positives_come_first_with_their_own_query(tiny_log):
    batches = make(tiny_log)
    pairs = set(
        zip(batches.examples.pairs.users, batches.examples.pairs.items, strict=True)
    )
    for batch in numpy_of(batches.dataset(1.0, 0, 0, 3)):
        items = batch["items/"]
        assert items.shape == (32 + 8 + 4,)
        users = users_of(batch)
        assert all(pair in pairs for pair in zip(users, items[:32], strict=True))
        np.testing.assert_array_equal(
            batch["rows/item_id"][batch["candidate/item_id"]],
            tiny_log.items.id_rows[items],
        )
        # Every positive is a known one: the loss puts it back.
        assert np.diag(hidden(batch)[:, :32]).all()


def test_each_table_row_is_named_once_and_reserved_rows_come_first(
    tiny_log, table_rows
):
    batches = make(tiny_log)
    examples = batches.examples
    for batch in batches.dataset(1.0, 0, 3, 6):
        for rows in batch["rows"].values():
            assert len(np.unique(rows)) == len(rows)
            np.testing.assert_array_equal(rows[:NUM_RESERVED], range(NUM_RESERVED))
        whole = table_rows(batch)
        users = whole["query"]["user_id"].numpy() - NUM_RESERVED
        pairs = examples.pairs
        for row, (user, item) in enumerate(
            zip(users, batch["items"][:32], strict=False)
        ):
            (number,) = np.flatnonzero((pairs.users == user) & (pairs.items == item))
            expected = batches._queries(
                tf.constant(pairs.users[[number]]),
                tf.constant(examples.history_end[[number]]),
                tf.constant(pairs.items[[number]]),
            )
            for event in tiny_log.history_events:
                got = whole["query"][f"history_{event}"][row]
                np.testing.assert_array_equal(got, expected[f"history_{event}"][0])


def raw_events(config):
    """(user, item) -> times per event, from the simulator itself."""
    from tfcsmf.data.simulator import simulate

    simulation = simulate(config.simulator, config.cascade.objectives, config.seed)
    frame = simulation.events.group_by("user_id", "event", "item_id").agg("timestamp")
    return {tuple(row[:3]): row[3] for row in frame.rows()}


def test_histories_hold_neither_the_target_nor_the_future(tiny_config, tiny_log):
    times = raw_events(tiny_config)
    batches = make(tiny_log, history_length=100)
    met = 0
    rows = np.arange(len(batches.examples.pairs))
    examples, ids = batches.examples, tiny_log.items.ids
    inputs = batches._queries(
        tf.constant(examples.pairs.users),
        tf.constant(examples.history_end),
        tf.constant(examples.pairs.items),
    )
    for event in tiny_log.history_events:
        history = inputs[f"history_{event}"]
        for row in rows:
            positions = history[row].numpy() - NUM_RESERVED
            user = tiny_log.users.ids[examples.pairs.users[row]]
            assert examples.pairs.items[row] not in positions
            for position in positions:
                met += 1
                assert (
                    min(times[user, event, ids[position]]) < examples.pairs.times[row]
                )
    assert met > 1000


def test_known_pairs_equal_brute_force():
    rng = np.random.default_rng(0)
    # The last two share their last 16 bits with others.
    names = np.concatenate([np.arange(12), [5 + 2**16, 7 + 2**17]])
    lists = [
        np.sort(rng.choice(names, size, replace=False)) for size in (0, 3, 14, 1, 5)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    known = Csr(offsets, np.concatenate(lists).astype(np.int32))
    for _ in range(5):
        users = rng.integers(0, 5, 7).astype(np.int32)
        items = rng.choice([*names, 12, 13], 20).astype(np.int32)  # repeats
        expected = [[item in lists[user] for item in items] for user in users]
        got = known_pairs(*known_lists(known), tf.constant(users), tf.constant(items))
        assert (np.diff(got[:, 0]) >= 0).all()
        matrix = np.zeros([7, 20], bool)
        matrix[tuple(got.numpy().T)] = True
        np.testing.assert_array_equal(matrix, expected)
        assert len(got) == matrix.sum()


def test_known_pairs_without_known_positives():
    known = Csr(np.zeros(3, np.int64), np.zeros(0, np.int32))
    got = known_pairs(*known_lists(known), tf.constant([0, 1]), tf.constant([0, 5, 5]))
    assert got.shape == (0, 2)


def test_excluded_pairs_are_all_known_positives_of_the_row(tiny_log):
    known = tiny_log.known["click"]
    (batch,) = numpy_of(make(tiny_log).dataset(1.0, 0, 5, 6))
    expected = [np.isin(batch["items/"], known.row(user)) for user in users_of(batch)]
    np.testing.assert_array_equal(hidden(batch), expected)


def test_batch_larger_than_the_examples(tiny_log):
    few = with_examples(tiny_log, "click", np.arange(5))
    batches = make(few, batch_size=1000)
    assert (batches.batch_size, batches.steps_per_epoch()) == (5, 1)
    assert len(batches.subset(0.01)) == 5  # never less than a batch
    for batch in numpy_of(batches.dataset(1.0, 0, 0, 3)):
        assert sorted(batch["items/"][:5]) == sorted(batches.examples.pairs.items)


@pytest.mark.parametrize("uniform", [0, 8])
def test_one_example(tiny_log, uniform):
    one = with_examples(tiny_log, "click", np.array([9]))
    batches = make(one, uniform_negatives=uniform, hard_negatives=0)
    for batch in numpy_of(batches.dataset(0.5, 0, 0, 3)):
        assert batch["items/"].shape == (1 + uniform,)
        assert batch["items/"][0] == batches.examples.pairs.items[0]
    assert batches.probability.sum() == pytest.approx(1.0, rel=1e-5)


def test_no_history_at_all(tiny_log):
    log = with_examples(tiny_log, "click", np.arange(40))
    log.train["click"].history_end[:] = 0  # a copy of the log's own
    (batch,) = numpy_of(make(log).dataset(1.0, 0, 0, 1))
    for event in log.history_events:
        assert batch[f"query/history_{event}"].shape == (32, 0)


def chi_square(drawn, expected_share):
    """The statistic minus its mean, in standard deviations."""
    inside = expected_share > 0
    assert np.isin(drawn, np.flatnonzero(inside)).all()
    counts = np.bincount(drawn, minlength=len(expected_share))[inside]
    expected = expected_share[inside] * len(drawn)
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = inside.sum() - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def hard_pairs(log):
    """Exposed, not clicked: counted by hand."""

    def pairs(name):
        kept = log.train[name].pairs
        return set(zip(kept.users.tolist(), kept.items.tolist(), strict=True))

    return pairs("exposure") - pairs("click")


def test_uniform_and_hard_negatives_follow_their_distributions(tiny_log):
    batches = make(tiny_log, uniform_negatives=300, hard_negatives=300)
    size = tiny_log.items.size
    steps = numpy_of(batches.dataset(1.0, 0, 0, 20))
    uniform = np.concatenate([batch["items/"][32:332] for batch in steps])
    hard = np.concatenate([batch["items/"][332:] for batch in steps])
    items = np.array([item for _, item in hard_pairs(tiny_log)])
    share = np.bincount(items, minlength=size) / len(items)
    assert abs(chi_square(uniform, np.full(size, 1 / size))) < 4
    assert abs(chi_square(hard, share)) < 4
    assert chi_square(uniform, share if (share > 0).all() else share + 1e-3) > 10


def test_the_first_stage_has_no_hard_negatives(tiny_log):
    batches = make(tiny_log, "exposure")
    assert batches.hard_negatives == 0
    (batch,) = numpy_of(batches.dataset(1.0, 0, 0, 1))
    assert batch["items/"].shape == (32 + 8,)


@pytest.mark.parametrize(("uniform", "hard"), [(0, 0), (8, 0), (8, 4), (0, 4)])
def test_probability_is_that_of_one_negative_column(tiny_log, uniform, hard):
    batches = make(tiny_log, uniform_negatives=uniform, hard_negatives=hard)
    assert batches.probability.sum() == pytest.approx(1.0, rel=1e-5)
    size = tiny_log.items.size
    items = batches.examples.pairs.items
    hard_items = np.array([item for _, item in hard_pairs(tiny_log)])
    # A row meets the other 31 positives; its own one is no negative.
    counts = 31 * np.bincount(items, minlength=size) / len(items)
    counts += uniform / size
    counts += hard * np.bincount(hard_items, minlength=size) / len(hard_items)
    np.testing.assert_allclose(
        batches.probability * (31 + uniform + hard), counts, rtol=1e-5
    )


def test_items_without_a_row_of_their_own(tiny_config):
    tree = tiny_config.to_dict()
    tree["data"]["min_count"] = 25
    log = prepare(Config.from_dict(tree))
    assert 0 < log.items.trained < log.items.size
    for name in log.objectives:
        for batch in numpy_of(make(log, name).dataset(1.0, 0, 0, 4)):
            assert batch["rows/item_id"].max() < log.items.num_rows
