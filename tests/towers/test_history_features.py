"""Histories that say what their items are: features beside ids."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.data.rows import NUM_RESERVED, PADDING, UNKNOWN
from tfcsmf.towers import FeatureSpec, HistoryFeatures, Tower
from tfcsmf.towers.linear_path import projection

FEATURES = (
    FeatureSpec("colour", "categorical", 5),
    FeatureSpec("tags", "multi", 7),
    FeatureSpec("image", "vector", 3),
)
# By catalogue position; position p is row p + NUM_RESERVED.
COLUMNS = {
    "colour": np.array([2, 3, 2, 4], np.int32),
    "tags": np.array([[3, 4], [5, PADDING], [PADDING, PADDING], [6, 3]], np.int32),
    "image": np.eye(4, 3, dtype=np.float32),
}
SETTINGS = {
    "dimension": 6,
    "hidden_units": (),
    "embedding_dimension": 4,
    "feature_dimension": 3,
}


def items(positions):
    return {name: tf.gather(column, positions) for name, column in COLUMNS.items()}


def make_towers(**options):
    candidate = Tower(
        "item_id",
        4 + NUM_RESERVED,
        FEATURES,
        is_item=True,
        name="candidate",
        **SETTINGS | options,
    )
    candidate.build(None)
    query = Tower(
        "user_id",
        3,
        histories=("history_a", "history_b"),
        history_table=candidate.id_table,
        history_features=HistoryFeatures(candidate, items),
        name="query",
        **SETTINGS | options,
    )
    query.build(None)
    return candidate, query


INPUTS = {
    "user_id": tf.constant([2, 1]),
    "history_a": tf.constant([[3, 4, 6], [PADDING, 5, PADDING]]),
    "history_b": tf.constant([[PADDING], [PADDING]]),
}


def test_features_of_histories_are_pooled_as_ids_are():
    candidate, query = make_towers()
    ids = candidate.id_table.table.numpy()
    colours, tags = (layer.table.numpy() for layer in candidate.encoders[:2])
    image = candidate.encoders[2].kernel.numpy()

    def item(row):
        at = row - NUM_RESERVED
        own = COLUMNS["tags"][at]
        known = own[own != PADDING]
        mean = tags[known].mean(axis=0) if len(known) else np.zeros(3)
        colour = colours[COLUMNS["colour"][at]]
        return np.concatenate([ids[row], colour, mean, COLUMNS["image"][at] @ image])

    got = query.encode(INPUTS).numpy()
    assert got.shape[1] == query.input_width == 4 + 2 * (4 + 9)
    columns = query.history_columns("history_a")
    expected = [(item(3) + item(4) + item(6)) / np.sqrt(3), item(5)]
    np.testing.assert_allclose(got[:, columns], expected, rtol=1e-5, atol=1e-6)
    assert not got[:, query.history_columns("history_b")].any()


@pytest.mark.parametrize("stage", [None, 0])
def test_a_block_of_rows_changes_nothing(stage):
    candidate, query = make_towers()
    rows = tf.constant([0, 1, 2, 6, 4, 3, 5])
    blocks = {"item_id": candidate.id_table.block(rows)}
    numbers = {3: 5, 4: 4, 5: 6, 6: 3, PADDING: PADDING}
    local = {
        name: tf.constant(np.vectorize(numbers.get)(INPUTS[name].numpy()))
        for name in ("history_a", "history_b")
    }
    np.testing.assert_array_equal(
        query(INPUTS | local, stage, blocks=blocks), query(INPUTS, stage)
    )
    assert (stage == 0) == (not query(INPUTS, stage).numpy().any())  # all is FREE


def test_ragged_and_padded_histories_are_the_same():
    _, query = make_towers()
    ragged = {
        "history_a": tf.ragged.constant([[3, 4, 6], [5]], dtype=tf.int32),
        "history_b": tf.ragged.constant([[], []], dtype=tf.int32),
    }
    np.testing.assert_array_equal(query(INPUTS | ragged), query(INPUTS))


def test_items_like_those_in_a_history_have_larger_scores_from_the_start():
    tf.keras.utils.set_random_seed(1)
    sizes = {"dimension": 24, "feature_dimension": 16, "embedding_dimension": 24}
    candidate, query = make_towers(**sizes)
    for unused in (candidate.encoders[1].table, candidate.encoders[2].kernel):
        unused.assign(tf.zeros_like(unused))  # colours alone
    catalogue = {"item_id": tf.fill([4], UNKNOWN), **items(tf.range(4))}
    met = INPUTS | {"history_a": tf.constant([[3], [4]])}  # positions 0 and 1
    scores = tf.matmul(query(met), candidate(catalogue), transpose_b=True).numpy()
    # Positions 0 and 2 have the colour 2, the others one each.
    assert scores[0, [0, 2]].min() > scores[0, [1, 3]].max() + 0.05
    assert scores[1, 1] > np.delete(scores[1], 1).max() + 0.05


def test_features_belong_to_the_candidate_tower_alone():
    candidate, query = make_towers()
    names = [p.name for p in query.owned_parameters()]
    assert names == ["query/user_id/table", "query/output/kernel"]
    own = {p.name for p in candidate.owned_parameters()}
    assert "candidate/features/colour/table" in own
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(query(INPUTS)))
    gradient = tape.gradient(loss, candidate.encoders[0].table)
    assert set(gradient.indices.numpy()) == {2, 3, 4}


@pytest.mark.parametrize(("rows", "units"), [(3, 8), (8, 3)])
def test_projections_are_fixed_and_orthonormal(rows, units):
    first = projection(1, rows, units).numpy()
    np.testing.assert_array_equal(first, projection(1, rows, units))
    short = first if rows <= units else first.T
    np.testing.assert_allclose(short @ short.T, np.eye(3), atol=1e-6)
    assert not np.allclose(first, projection(2, rows, units))
