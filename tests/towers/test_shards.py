"""A table in shards is the table: the same bits, whatever is done with it."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade import capacity
from tfcsmf.cascade.pruning import make_criterion
from tfcsmf.data.rows import PADDING
from tfcsmf.optimizers import RowAdagrad, RowAdam
from tfcsmf.retrieval.folding import FoldedTable
from tfcsmf.towers import FREE, MaskedEmbedding
from tfcsmf.towers.shards import take_rows

ROWS, COLUMNS = 23, 5  # shards of 8, 8 and 7 rows


def tables(ownership="entries"):
    """Returns a whole table and one in shards, drawn from the same seed."""
    made = []
    for shard_rows in (None, 8):
        tf.keras.utils.set_random_seed(5)
        layer = MaskedEmbedding(
            ROWS, COLUMNS, ownership, 0.5, shard_rows, name="item_id"
        )
        layer.build(None)
        made.append(layer)
    return made


def joined(variables):
    return np.concatenate([variable.numpy() for variable in variables])


def assert_same_table(whole, sharded):
    np.testing.assert_array_equal(joined(sharded.tables), whole.table.numpy())
    if whole.ownership == "entries":
        np.testing.assert_array_equal(joined(sharded.owners), whole.table_owner.numpy())


def test_it_starts_with_the_same_numbers():
    whole, sharded = tables()
    assert [v.shape[0] for v in sharded.tables] == [8, 8, 7]
    assert [p.name for p in sharded.owned_parameters("candidate")] == [
        f"candidate/item_id/table/{number}" for number in range(3)
    ]
    assert np.abs(whole.table.numpy()).min() > 0
    assert_same_table(whole, sharded)


def test_one_owned_by_columns_stays_whole():
    assert tables("columns")[1].num_shards == 1


def test_shards_that_cannot_be_drawn_alike_are_refused():
    with pytest.raises(ValueError, match="multiple of 4. Received: 6"):
        MaskedEmbedding(ROWS, COLUMNS, shard_rows=6)


@pytest.mark.parametrize("rows", [[], [22], [8, 7, 22, 0, 7], [0, 1, 2]])
def test_rows_by_hand(rows):
    values = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
    shards = [tf.Variable(values[start : start + 8]) for start in (0, 8, 16)]
    taken = take_rows(shards, tf.constant(rows, tf.int32))
    np.testing.assert_array_equal(taken, values[np.array(rows, int)])


@pytest.mark.parametrize("ownership", ["entries", "frozen"])
@pytest.mark.parametrize("stage", [None, 0, 1])
def test_lookups_and_pools(ownership, stage):
    rng = np.random.default_rng(0)
    whole, sharded = tables(ownership)
    if ownership == "entries":
        owners = rng.choice([0, 1, FREE], [ROWS, COLUMNS]).astype(np.int8)
        whole.table_owner.assign(owners)
        for number, owner in enumerate(sharded.owners):
            owner.assign(owners[8 * number : 8 * number + 8])
    rows = tf.constant(rng.integers(0, ROWS, [6, 9]), tf.int32)
    np.testing.assert_array_equal(sharded(rows, stage), whole(rows, stage))
    lists = tf.where(rng.random([6, 9]) < 0.3, PADDING, rows)
    blocks = [layer.block(tf.range(ROWS)[::-1]) for layer in (whole, sharded)]
    for ours, theirs in zip((None, blocks[1]), (None, blocks[0]), strict=True):
        np.testing.assert_array_equal(
            sharded.pool(lists, stage, ours), whole.pool(lists, stage, theirs)
        )
    folded = [FoldedTable(layer, [0, 1]) for layer in (whole, sharded)]
    flat = tf.reshape(rows, [-1])
    np.testing.assert_array_equal(folded[1](flat), folded[0](flat))


@pytest.mark.parametrize("kind", [RowAdam, RowAdagrad])
def test_updates(kind):
    rng = np.random.default_rng(1)
    owners = rng.choice([0, FREE], [ROWS, COLUMNS]).astype(np.int8)
    ends = []
    targets = rng.normal(size=[4, ROWS, COLUMNS]).astype(np.float32)
    names = [rng.permutation(ROWS)[:size] for size in (1, 9, ROWS, 5)]
    for layer in tables():
        for first, owner in zip((0, 8, 16), layer.owners, strict=False):
            owner.assign(owners[first : first + owner.shape[0]])
        optimizer = kind(0.1, decay=0.01)
        optimizer.build(layer.tables)
        optimizer.update_only(layer.owned_parameters("candidate"))
        before = joined(layer.tables)

        @tf.function(reduce_retracing=True)
        def step(rows, target, layer=layer, optimizer=optimizer):
            with tf.GradientTape() as tape:
                values = layer.block(rows).values
                loss = tf.reduce_sum(tf.square(values - target))
            gradients = tape.gradient(loss, layer.tables)
            pairs = zip(gradients, layer.tables, strict=True)
            optimizer.apply_gradients(pairs, distinct_rows=layer.tables)

        for rows, target in zip(names, targets, strict=True):
            step(tf.constant(rows, tf.int32), target[rows])
        ends.append(joined(layer.tables))
        moved = ends[-1] != before
        assert not moved[owners == 0].any() and moved[owners == FREE].mean() > 0.9
        slots = optimizer.state()[1:]
        of_kind = [
            slots[i : i + len(layer.tables)]
            for i in range(0, len(slots), len(layer.tables))
        ]
        ends.append(np.stack([joined(part) for part in of_kind]))
    np.testing.assert_array_equal(ends[2], ends[0])
    np.testing.assert_array_equal(ends[3], ends[1])


@pytest.mark.parametrize(
    ("criterion", "how"),
    [("cpp", "keep"), ("magnitude", "reinitialize"), ("random", "zero")],
)
def test_pruning_with_ties(build, criterion, how):
    models = [build(f"towers.shard_rows={rows}") for rows in (1 << 20, 8)]
    assert [m.candidate_tower.id_table.num_shards for m in models] == [1, 6]
    ends = []
    for model in models:
        rng = np.random.default_rng(2)
        for layer in model.id_tables.values():
            # Few distinct magnitudes, so that most entries of a row are tied.
            drawn = rng.choice([-1.0, 0.0, 1.0, 2.0], [layer.num_rows, layer.dimension])
            first = 0
            for table in layer.tables:
                table.assign(drawn[first : first + table.shape[0]])
                first += table.shape[0]
        before = capacity.snapshot(model)
        shares = capacity.Shares(0.2, 0.3, 0.2)
        freed = capacity.prune(model, 0, make_criterion(criterion, 3), shares)
        capacity.reopen(model, how, before, 4)
        capacity.take_over(model, 1)
        ends.append((model, freed))
    (whole, expected), (sharded, freed) = ends
    assert freed == expected
    assert 0 < freed["candidate/item_id/table"] < 1
    for ours, theirs in zip(
        sharded.id_tables.values(), whole.id_tables.values(), strict=True
    ):
        assert_same_table(theirs, ours)
        assert (theirs.table_owner.numpy() == 1).any()
