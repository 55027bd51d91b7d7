"""Item tokens and the candidate side: every kind of feature by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.data.rows import MISSING, PADDING, UNKNOWN
from tfcsmf.heterrec import CrossTower, ItemTokens, TiedCandidates
from tfcsmf.towers import FeatureSpec

FEATURES = (
    FeatureSpec("colour", "categorical", 5),
    FeatureSpec("price", "numeric", 6),
    FeatureSpec("tags/of it", "multi", 7),
    FeatureSpec("image", "vector", 3),
)
INPUTS = {
    "item_id": tf.constant([3, UNKNOWN]),
    "colour": tf.constant([4, MISSING]),
    "price": tf.constant([5, MISSING]),
    "tags/of it": tf.constant([[3, 4], [MISSING, PADDING]]),
    "image": tf.constant([[0.5, -1.0, 0.0], [0.0, 0.0, 1.0]]),
}


def make(**options):
    return ItemTokens(9, FEATURES, 4, name="items", **options)


def test_every_kind_of_feature_by_hand():
    layer = make()
    got = layer(INPUTS).numpy()
    ids = layer.id_table.table.numpy()
    colour, price, tags = (e.table.numpy() for e in layer.encoders[:3])
    image = layer.encoders[3].kernel.numpy()
    first = [ids[3], colour[4], price[5], (tags[3] + tags[4]) / 2]
    first.append(0.5 * image[0] - image[1])
    # What is missing has an embedding; of a vector, the row of its flag.
    second = [ids[UNKNOWN], colour[MISSING], price[MISSING], tags[MISSING], image[2]]
    np.testing.assert_allclose(got, [first, second], rtol=1e-5)
    assert layer.names == ["item_id", "colour", "price", "tags/of it", "image"]


def test_parameters_go_by_the_names_of_features():
    layer = make()
    layer(INPUTS)
    assert [p.name for p in layer.owned_parameters("query")] == [
        "query/items/item_id/table",
        "query/items/features/colour/table",
        "query/items/features/price/table",
        "query/items/features/tags/of it/table",
        "query/items/features/image/kernel",
    ]
    owned = {p.variable.ref() for p in layer.owned_parameters("")}
    assert owned == {v.ref() for v in layer.trainable_variables}


def test_id_dropout_makes_ids_unknown_in_training_only():
    layer = make(id_dropout=0.5)
    inputs = {name: tf.repeat(values[:1], 400, 0) for name, values in INPUTS.items()}
    table = layer(inputs)[:, 0].numpy()
    assert (table == table[0]).all()
    ids = layer.id_table.table.numpy()
    trained = layer(inputs, seed=tf.constant([1, 2])).numpy()
    unknown = (trained[:, 0] == ids[UNKNOWN]).all(axis=1)
    assert 0.4 < unknown.mean() < 0.6
    assert (trained[~unknown, 0] == ids[3]).all()
    assert (trained[:, 1:] == trained[0, 1:]).all()


def test_ids_are_hidden_by_the_larger_of_both_chances():
    by_row = np.zeros(9)
    by_row[[4, 5]] = [1.0, 0.8]
    rows = tf.repeat([3, 4, 5], 400)
    inputs = {name: tf.repeat(values[:1], 1200, 0) for name, values in INPUTS.items()}
    layer = make(id_dropout=0.3, id_hidden=by_row)
    trained = layer(inputs | {"item_id": rows}, seed=tf.constant([1, 2])).numpy()
    unknown = (trained[:, 0] == layer.id_table.table.numpy()[UNKNOWN]).all(axis=1)
    got = unknown.reshape(3, 400).mean(axis=1)
    # Three standard deviations of a share of 400.
    np.testing.assert_allclose(got, [0.3, 1.0, 0.8], atol=0.07)
    np.testing.assert_array_equal(unknown, layer.hidden(rows, tf.constant([1, 2])))
    seen = layer(inputs | {"item_id": rows}).numpy()
    assert (seen[:, 0] == layer.id_table.table.numpy()[rows.numpy()]).all()


def test_cross_tower_by_hand():
    tower = CrossTower(2, 3)
    tokens = tf.constant(np.random.default_rng(0).normal(size=[5, 2, 3]), tf.float32)
    vectors, features = tower(tokens)
    for part in (*tower.towers, tower.cross):
        part.last.bias.assign([0.1, 0.2, 0.3])
    vectors, features = tower(tokens)
    expected = [
        tokens[:, index].numpy() @ part.last.kernel.numpy() + [0.1, 0.2, 0.3]
        for index, part in enumerate(tower.towers)
    ]
    np.testing.assert_allclose(features, np.stack(expected, 1), rtol=1e-4, atol=1e-6)
    joined = np.concatenate(expected, axis=1)
    cross = joined @ tower.cross.last.kernel.numpy() + [0.1, 0.2, 0.3]
    np.testing.assert_allclose(vectors, cross, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_item_vectors_start_as_the_sum_of_their_tokens(hidden):
    tokens = tf.random.stateless_normal([6, 3, 4], [0, 1])
    tower = CrossTower(3, 4, hidden)
    vectors, features = tower(tokens)
    # Hidden layers add little at first.
    close = {"atol": 0.5} if hidden else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(features, tokens, **close)
    np.testing.assert_allclose(vectors, tf.reduce_sum(features, 1), **close)
    assert hidden == () or not np.allclose(features, tokens)


def test_tied_candidates_are_the_id_embeddings():
    tokens = tf.random.stateless_normal([4, 1, 3], [0, 1])
    vectors, features = TiedCandidates()(tokens)
    np.testing.assert_array_equal(vectors, tokens[:, 0])
    np.testing.assert_array_equal(features, tokens)


def test_configuration_round_trip():
    layer = make(id_dropout=0.1, ownership="columns")
    assert ItemTokens.from_config(layer.get_config()).get_config() == layer.get_config()
    tower = CrossTower(2, 3, (4,))
    assert CrossTower.from_config(tower.get_config()).get_config() == tower.get_config()
