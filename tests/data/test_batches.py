"""Training batches: pure functions of their number, complete epochs, no leaks."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.known_pairs import known_lists, known_pairs
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
        assert not np.array_equal(items(**changes), base)


@pytest.mark.parametrize("name", ["tiny_log", "untimed_log"])
def test_steps_differ_in_rows_targets_negatives_and_dropout(name, request):
    log = request.getfixturevalue(name)
    batches = make(log, batch_size=8)
    per_epoch = batches.steps_per_epoch()
    steps = numpy_of(batches.dataset(1.0, 0, 0, 2 * per_epoch))
    parts = ["rows/user_id", "items/", "seed/"]
    if name == "untimed_log":
        parts.append("positives/")
    for part in parts:
        drawn = {batch[part].tobytes() for batch in steps}
        assert len(drawn) == len(steps)


def test_target_and_negatives_are_drawn_apart(untimed_log):
    """Fewer negatives leave rows, targets and histories as they are."""
    first, second = (
        numpy_of(make(untimed_log, uniform_negatives=n).dataset(1.0, 0, 2, 3))[0]
        for n in (8, 30)
    )
    count = len(np.unique(first["positives/"][:, 1]))
    np.testing.assert_array_equal(first["positives/"], second["positives/"])
    np.testing.assert_array_equal(first["items/"][:count], second["items/"][:count])


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("batch_size", [32, 7])
def test_every_row_once_per_epoch_up_to_the_remainder(tiny_log, share, batch_size):
    batches = make(tiny_log, batch_size=batch_size, uniform_negatives=0)
    chosen = batches.subset(share)
    per_epoch = batches.steps_per_epoch(share)
    assert per_epoch == len(chosen) // batch_size
    assert len(chosen) == round(share * len(batches.rows))
    assert len(np.unique(chosen)) == len(chosen)
    numbers = tf.constant(chosen)
    orders = []
    for epoch in range(2):
        # The rows themselves, before anything is looked up.
        batches._assemble = lambda rows, _: {"rows": rows}
        part = batches.dataset(share, 0, epoch * per_epoch, (epoch + 1) * per_epoch)
        met = np.concatenate([batch["rows"] for batch in part])
        assert len(met) == per_epoch * batch_size
        assert len(np.unique(met)) == len(met)
        assert np.isin(met, numbers).all()
        orders.append(met)
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.parametrize("name", ["tiny_log", "untimed_log"])
@pytest.mark.parametrize("limit", [0, 40])
def test_positives_are_pairs_of_the_log(name, limit, request):
    log = request.getfixturevalue(name)
    batches = make(log, whole_catalogue=limit)
    known = batches.examples.pairs
    pairs = set(zip(known.users, known.items, strict=True))
    for batch in numpy_of(batches.dataset(1.0, 0, 0, 3)):
        users, items = users_of(batch), batch["items/"]
        assert len(np.unique(items)) == len(items)
        rows, columns = batch["positives/"].T
        assert (np.diff(rows) >= 0).all()
        assert set(rows) == set(range(len(users)))  # each has one at least
        got = list(zip(users[rows], items[columns], strict=True))
        assert pairs.issuperset(got) and len(set(got)) == len(got)
        if name == "untimed_log":
            assert len(set(users)) == len(users) < len(rows)
        np.testing.assert_array_equal(
            batch["rows/item_id"][batch["candidate/item_id"]],
            log.items.id_rows[items],
        )
        # Every positive is a known one: the loss puts it back.
        assert hidden(batch)[rows, columns].all()


def test_a_small_catalogue_is_all_candidates(tiny_log):
    size = tiny_log.items.size
    batches = make(tiny_log, whole_catalogue=size, hard_negatives=0)
    assert batches.has_whole_catalogue and batches.probability is None
    (batch,) = numpy_of(batches.dataset(1.0, 0, 0, 1))
    np.testing.assert_array_equal(batch["items/"], np.arange(size))
    assert "counts/" not in batch
    assert not make(tiny_log, whole_catalogue=size - 1).has_whole_catalogue


def test_hard_negatives_weigh_more_in_a_whole_catalogue(tiny_log):
    batches = make(tiny_log, whole_catalogue=10**6, hard_negatives=64)
    steps = numpy_of(batches.dataset(1.0, 0, 0, 20))
    drawn = np.sum([batch["counts/"] - 1 for batch in steps], axis=0)
    assert drawn.sum() == 20 * 64 and drawn.min() >= 0
    items = np.array([item for _, item in hard_pairs(tiny_log)])
    share = np.bincount(items, minlength=tiny_log.items.size) / len(items)
    draws = np.repeat(np.arange(len(drawn)), drawn.astype(int))
    assert abs(chi_square(draws, share)) < 4


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
        for row, column in batch["positives"].numpy():
            user, item = users[row], int(batch["items"][column])
            (number,) = np.flatnonzero((pairs.users == user) & (pairs.items == item))
            expected = batches._queries(
                tf.constant(pairs.users[[number]]),
                tf.constant(examples.history_end[[number]]),
                lambda _, owners, positions, item=item: positions != item,
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


@pytest.mark.parametrize("visible", [0.0, 1.0])
def test_histories_hold_neither_the_target_nor_the_future(
    tiny_config, tiny_log, table_rows, visible
):
    times = raw_events(tiny_config)
    batches = make(tiny_log, history_length=100, visible_share=visible)
    pairs, ids = batches.examples.pairs, tiny_log.items.ids
    names = zip(pairs.users, pairs.items, strict=True)
    when = dict(zip(names, pairs.times, strict=True))
    met, shown = 0, 0
    for batch in batches.dataset(1.0, 0, 0, batches.steps_per_epoch()):
        query = table_rows(batch)["query"]
        users = query["user_id"].numpy() - NUM_RESERVED
        for row, column in batch["positives"].numpy():
            target = int(batch["items"][column])
            happened = when[users[row], target]
            for event in tiny_log.history_events:
                user = tiny_log.users.ids[users[row]]
                positions = query[f"history_{event}"][row].numpy() - NUM_RESERVED
                if event == "click" or not visible:
                    assert target not in positions
                shown += target in positions
                for position in positions:
                    met += 1
                    assert min(times[user, event, ids[position]]) < happened
    assert met > 1000
    assert (shown > 0) == bool(visible)


def test_what_is_predicted_is_left_out_where_time_is_unknown(untimed_log, table_rows):
    batches = make(untimed_log, history_length=1000)
    lists = untimed_log.train_histories.lists
    for batch in batches.dataset(1.0, 0, 0, 2):
        query = table_rows(batch)["query"]
        users = query["user_id"].numpy() - NUM_RESERVED
        rows, columns = batch["positives"].numpy().T
        items = batch["items"].numpy()[columns]
        for row, user in enumerate(users):
            targets = items[rows == row]
            for event, whole in lists.items():
                expected = whole.row(user)[~np.isin(whole.row(user), targets)]
                got = query[f"history_{event}"][row].numpy() - NUM_RESERVED
                np.testing.assert_array_equal(got, expected)


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
    size = len(batches.rows)
    assert (batches.batch_size, batches.steps_per_epoch()) == (size, 1)
    assert len(batches.subset(0.01)) == size  # never less than a batch
    for batch in numpy_of(batches.dataset(1.0, 0, 0, 3)):
        met = batch["items/"][batch["positives/"][:, 1]]
        assert sorted(met) == sorted(batches.examples.pairs.items)


@pytest.mark.parametrize("uniform", [0, 8])
def test_one_example(tiny_log, uniform):
    one = with_examples(tiny_log, "click", np.array([9]))
    batches = make(one, uniform_negatives=uniform, hard_negatives=0)
    for batch in numpy_of(batches.dataset(0.5, 0, 0, 3)):
        assert batch["counts/"].sum() == 1 + uniform
        assert batch["positives/"].tolist() == [[0, 0]]
        assert batch["items/"][0] == batches.examples.pairs.items[0]
    assert batches.probability.sum() == pytest.approx(1.0, rel=1e-5)


def test_no_history_at_all(tiny_log):
    log = with_examples(tiny_log, "click", np.arange(40))
    log.train["click"].history_end[:] = 0  # a copy of the log's own
    (batch,) = numpy_of(make(log).dataset(1.0, 0, 0, 1))
    for event in log.history_events:
        assert batch[f"query/history_{event}"].shape == (len(make(log).rows), 0)


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


@pytest.mark.parametrize("name", ["tiny_log", "untimed_log"])
def test_sampled_candidates_follow_the_probability(name, request):
    """Over many batches: what is drawn is what the correction divides by."""
    log = request.getfixturevalue(name)
    batches = make(log, uniform_negatives=20, hard_negatives=20, batch_size=8)
    size = log.items.size
    drawn, positives = np.zeros(size), 0
    steps = 60
    for batch in numpy_of(batches.dataset(1.0, 0, 0, steps)):
        np.add.at(drawn, batch["items/"], batch["counts/"])
        positives += len(batch["positives/"])
    # As the correction sees it: a row's own positives are no negatives.
    others = positives / batches.batch_size * (batches.batch_size - 1)
    total = others + 40 * steps
    shares = np.bincount(batches.rows.items, minlength=size) / len(batches.rows.items)
    expected = batches.probability * total + (positives - others) * shares
    assert drawn.sum() == pytest.approx(positives + 40 * steps)
    spread = np.sqrt(expected)
    # Rows are drawn without replacement: no more spread than independent draws have.
    assert (np.abs(drawn - expected) < 4.5 * spread + 1).all()


def test_the_first_stage_has_no_hard_negatives(tiny_log):
    batches = make(tiny_log, "exposure")
    assert batches.hard_negatives == 0
    (batch,) = numpy_of(batches.dataset(1.0, 0, 0, 1))
    assert batch["counts/"].sum() == len(batch["positives/"]) + 8


@pytest.mark.parametrize(("uniform", "hard"), [(0, 0), (8, 0), (8, 4), (0, 4)])
def test_probability_is_that_of_one_negative_column(tiny_log, uniform, hard):
    batches = make(tiny_log, uniform_negatives=uniform, hard_negatives=hard)
    assert batches.probability.sum() == pytest.approx(1.0, rel=1e-5)
    size = tiny_log.items.size
    items = batches.rows.items
    hard_items = np.array([item for _, item in hard_pairs(tiny_log)])
    # A row meets the positives of the other 31.
    others = 31 * len(items) / len(batches.rows)
    counts = others * np.bincount(items, minlength=size) / len(items)
    counts += uniform / size
    counts += hard * np.bincount(hard_items, minlength=size) / len(hard_items)
    np.testing.assert_allclose(
        batches.probability * (others + uniform + hard), counts, rtol=1e-5
    )


def test_items_without_a_row_of_their_own(tiny_config):
    tree = tiny_config.to_dict()
    tree["data"]["min_count"] = 25
    log = prepare(Config.from_dict(tree))
    assert 0 < log.items.trained < log.items.size
    for name in log.objectives:
        for batch in numpy_of(make(log, name).dataset(1.0, 0, 0, 4)):
            assert batch["rows/item_id"].max() < log.items.num_rows
