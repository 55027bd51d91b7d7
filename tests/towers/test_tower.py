"""Tower: every kind of input, passes as hand-masked copies, dropout, saving."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.data.rows import PADDING, UNKNOWN
from tfcsmf.errors import DataError
from tfcsmf.towers import FREE, FeatureSpec, MaskedEmbedding, Tower

FEATURES = (
    FeatureSpec("colour", "categorical", 5),
    FeatureSpec("price", "numeric", 6),
    FeatureSpec("tags", "multi", 7),
    FeatureSpec("image", "vector", 3),
)
HIDDEN, DIMENSION, EMBEDDING, FEATURE = (9, 8), 4, 6, 5
INPUTS = {
    "item_id": tf.constant([3, 2, 9]),
    "colour": tf.constant([1, 4, 2]),
    "price": tf.constant([5, 3, 0]),
    "tags": tf.constant([[3, 4], [6, PADDING], [PADDING, PADDING]]),
    "image": tf.constant([[0.5, -1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 2.0]]),
}


def make_tower(**options):
    settings = {
        "features": FEATURES,
        "dimension": DIMENSION,
        "hidden_units": HIDDEN,
        "embedding_dimension": EMBEDDING,
        "feature_dimension": FEATURE,
        "name": "candidate",
    }
    tower = Tower("item_id", 10, **(settings | options))
    tower.build(None)
    return tower


def make_query(table, **options):
    options = {"histories": ("history_a", "history_b"), "features": ()} | options
    return make_tower(name="query", history_table=table, **options)


QUERY_INPUTS = {
    "item_id": INPUTS["item_id"],
    "history_a": tf.constant([[3, 4], [PADDING, 5], [PADDING, PADDING]]),
    "history_b": tf.constant([[PADDING], [PADDING], [9]]),
}


@pytest.mark.parametrize("name", ["history_a", "history_b/time"])
def test_a_feature_named_as_a_history_is_refused(name):
    table, spec = MaskedEmbedding(10, EMBEDDING), FeatureSpec(name, "categorical", 4)
    with pytest.raises(DataError, match=rf"{name}.*data\.ignore"):
        make_query(table, features=(spec,))


def test_every_kind_of_feature_by_hand():
    tower = make_tower(hidden_units=())
    got = tower.encode(INPUTS)
    tables = [
        t.numpy()
        for t in (
            tower.id_table.table,
            *(
                getattr(e, "table", None) if s.kind != "vector" else e.kernel
                for s, e in zip(FEATURES, tower.encoders, strict=True)
            ),
        )
    ]
    ids, colours, prices, tags, image = tables
    expected = np.concatenate(
        [
            ids[[3, 2, 9]],
            colours[[1, 4, 2]],
            prices[[5, 3, 0]],
            [(tags[3] + tags[4]) / 2, tags[6], np.zeros(FEATURE)],
            INPUTS["image"].numpy() @ image,
        ],
        axis=1,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert tower.input_width == expected.shape[1]
    output = tower.output_layer.kernel.numpy()
    np.testing.assert_allclose(tower(INPUTS), expected @ output, rtol=1e-4, atol=1e-5)


def test_the_output_layer_sees_hidden_activations_beside_the_encodings():
    tower = make_tower(activation="tanh")
    encodings = tower.encode(INPUTS).numpy()
    values = encodings
    for layer in tower.hidden:
        values = np.tanh(values @ layer.kernel.numpy() + layer.bias.numpy())
    seen = np.concatenate([values, encodings], axis=1)
    expected = seen @ tower.output_layer.kernel.numpy()
    np.testing.assert_allclose(tower(INPUTS), expected, rtol=1e-4, atol=1e-5)
    assert [(k.name, first) for k, first in tower.encoding_kernels()] == [
        ("hidden_0", 0),
        ("output", HIDDEN[1]),
    ]
    flat = make_tower(hidden_units=())
    assert flat.encoding_kernels() == [(flat.output_layer, 0)]


@pytest.mark.parametrize("dimension", [EMBEDDING, 4, 9])
@pytest.mark.parametrize("hidden", [(), HIDDEN])
def test_a_vector_starts_as_the_sum_of_its_embeddings(dimension, hidden):
    sizes = {"dimension": dimension, "hidden_units": hidden}
    candidate = make_tower(features=(), **sizes)
    query = make_query(candidate.id_table, **sizes)
    for tower in (candidate, query):
        # What hidden layers add at the start is small, and not looked at here.
        for layer in tower.hidden:
            layer.kernel.assign(tf.zeros_like(layer.kernel))
    items, users = (t.id_table.table.numpy() for t in (candidate, query))
    sums = users[[3, 2, 9]] + [
        (items[3] + items[4]) / np.sqrt(2),
        items[5],
        items[9],
    ]
    kept = min(dimension, EMBEDDING)
    for tower, inputs, expected in (
        (candidate, INPUTS, items[[3, 2, 9]]),
        (query, QUERY_INPUTS, sums),
    ):
        vectors = tower(inputs).numpy()
        np.testing.assert_allclose(
            vectors[:, :kept], expected[:, :kept], rtol=1e-5, atol=1e-7
        )
        assert not vectors[:, kept:].any()


def test_initial_rows_of_features_and_activations_are_draws():
    tf.keras.utils.set_random_seed(3)
    tower = make_tower(hidden_units=(50,), feature_dimension=50, dimension=40)
    tf.keras.utils.set_random_seed(3)
    same = make_tower(hidden_units=(50,), feature_dimension=50, dimension=40)
    kernel = tower.output_layer.kernel.numpy()
    np.testing.assert_array_equal(kernel, same.output_layer.kernel)
    limit = np.sqrt(6 / sum(kernel.shape))
    activations, ids, features = np.split(kernel, [50, 50 + EMBEDDING])
    np.testing.assert_array_equal(ids, np.eye(EMBEDDING, 40))
    for part, bound in ((activations, 0.1 * limit), (features, limit)):
        assert 0.95 * bound < np.abs(part).max() <= bound
        assert part.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_blocks_start_as_the_same_embedding_each():
    tower = make_tower(features=(), hidden_units=(), dimension=18, copies=3)
    ids = tower.id_table.table.numpy()[[3, 2, 9]]
    np.testing.assert_allclose(tower(INPUTS), np.tile(ids, 3), rtol=1e-6)


def test_initial_tables_are_small_and_those_of_query_ids_smaller():
    options = {"num_ids": 4000, "hidden_units": (), "features": FEATURES}
    tower = Tower("item_id", **options)
    query = Tower("user_id", id_scale=0.015, **options)
    for table, scale in (
        (tower.id_table, 0.05),
        (query.id_table, 0.015),
        (tower.encoders[0], 0.15),
    ):
        table.build(None)
        assert table.table.numpy().std() == pytest.approx(scale, rel=0.2)


def test_number_of_parameters_is_that_of_the_plain_tower():
    tower = make_tower()
    width = EMBEDDING + 4 * FEATURE
    expected = (
        10 * EMBEDDING
        + (5 + 6 + 7 + 3) * FEATURE
        + (width + 1) * HIDDEN[0]
        + (HIDDEN[0] + 1) * HIDDEN[1]
        + (HIDDEN[1] + width) * DIMENSION
    )
    assert sum(p.size for p in tower.owned_parameters()) == expected
    assert sum(int(np.prod(v.shape)) for v in tower.trainable_variables) == expected
    assert len({p.name for p in tower.owned_parameters()}) == 5 + 2 * 2 + 1


def test_the_shared_history_table_belongs_to_the_candidate_tower_only():
    candidate = make_tower(features=())
    query = make_query(candidate.id_table)
    shared = candidate.id_table.table
    assert any(v is shared for v in candidate.trainable_variables)
    assert not any(v is shared for v in query.trainable_variables)
    assert len(query.trainable_variables) == 1 + 2 * 2 + 1
    assert not any(p.variable is shared for p in query.owned_parameters())
    assert query.input_width == 3 * EMBEDDING

    encoded = query.encode(QUERY_INPUTS).numpy()
    rows = shared.numpy()
    np.testing.assert_allclose(
        encoded[:, EMBEDDING : 2 * EMBEDDING],
        [(rows[3] + rows[4]) / np.sqrt(2), rows[5], np.zeros(EMBEDDING)],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(
        encoded[:, 2 * EMBEDDING :], [np.zeros(EMBEDDING)] * 2 + [rows[9]]
    )
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(query(QUERY_INPUTS) ** 2)
    gradient = tape.gradient(loss, shared)
    assert set(gradient.indices.numpy()) == {3, 4, 5, 9}


def randomize_owners(tower, rng, owners=(0, 1, 2, FREE)):
    for parameter in tower.owned_parameters():
        # Biases belong to the first stage; `call` never masks them.
        choice = (0,) if parameter.role == "bias" else owners
        shape = parameter.owner.shape.as_list()
        parameter.owner.assign(rng.choice(np.array(choice, np.int8), shape))


def copy_masked(source, target, stage):
    for old, new in zip(
        source.owned_parameters(), target.owned_parameters(), strict=True
    ):
        used = old.owner.numpy() <= stage
        new.variable.assign(np.where(used, old.variable.numpy(), 0.0))


@pytest.mark.parametrize("ownership", ["entries", "columns", "frozen"])
def test_a_pass_equals_a_hand_masked_copy(ownership):
    rng = np.random.default_rng(3)
    candidate = make_tower(ownership=ownership)
    query = make_query(candidate.id_table, ownership=ownership)
    twin = make_tower(ownership=ownership)
    query_twin = make_query(twin.id_table, ownership=ownership)
    for tower in (candidate, query):
        randomize_owners(tower, rng)
    outputs = []
    for stage in (0, 1, 2):
        copy_masked(candidate, twin, stage)
        copy_masked(query, query_twin, stage)
        outputs.append(candidate(INPUTS, stage).numpy())
        np.testing.assert_array_equal(outputs[-1], twin(INPUTS))
        np.testing.assert_array_equal(
            query(QUERY_INPUTS, stage), query_twin(QUERY_INPUTS)
        )
    assert not np.array_equal(outputs[0], outputs[1])


def test_dropout_needs_a_seed_and_repeats_with_it():
    tower = make_tower(dropout=0.5, id_dropout=0.5)
    one, two = tf.constant([1, 0]), tf.constant([2, 0])
    plain = tower(INPUTS)
    np.testing.assert_array_equal(plain, tower(INPUTS))
    dropped = tower(INPUTS, seed=one)
    np.testing.assert_array_equal(dropped, tower(INPUTS, seed=one))
    assert not np.array_equal(dropped, plain)
    assert not np.array_equal(dropped, tower(INPUTS, seed=two))
    # Without rates a seed changes nothing.
    still = make_tower()
    np.testing.assert_array_equal(still(INPUTS), still(INPUTS, seed=one))


def test_id_dropout_replaces_the_stated_share_of_ids_by_unknown():
    tower = make_tower(features=(), id_dropout=0.3)
    ids = tf.fill([4000], 5)
    encoded = tower.encode({"item_id": ids}, seed=tf.constant([7, 7])).numpy()
    table = tower.id_table.table.numpy()
    unknown = (encoded == table[UNKNOWN]).all(axis=1)
    assert (unknown | (encoded == table[5]).all(axis=1)).all()
    assert unknown.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))


def test_ids_are_hidden_as_often_as_their_rows_say():
    chances = np.linspace(0.0, 0.9, 10)
    tower = make_tower(features=(), id_hidden=chances)
    table = tower.id_table.table.numpy()
    ids = tf.constant(np.repeat([3, 8], 4000), tf.int32)
    plain = tower.encode({"item_id": ids}, seed=tf.constant([7, 7])).numpy()
    for row, part in ((3, plain[:4000]), (8, plain[4000:])):
        unknown = (part == table[UNKNOWN]).all(axis=1)
        assert (unknown | (part == table[row]).all(axis=1)).all()
        chance = chances[row]
        spread = np.sqrt(chance * (1 - chance) / 4000)
        assert unknown.mean() == pytest.approx(chance, abs=4 * spread)
    # Ids that are numbers in a block mean its rows.
    rows = tf.constant([0, 1, 2, 8, 3])
    blocks = {"item_id": tower.id_table.block(rows)}
    local = tf.constant(np.repeat([4, 3], 4000), tf.int32)
    blocked = tower.encode({"item_id": local}, None, tf.constant([7, 7]), blocks)
    np.testing.assert_array_equal(blocked, plain)


def test_config_round_trip():
    tower = make_tower(
        activation="tanh",
        dropout=0.1,
        id_dropout=0.2,
        ownership="columns",
        id_scale=0.3,
        copies=2,
    )
    copy = Tower.from_config(tower.get_config())
    assert copy.get_config() == tower.get_config()
    copy.build(None)
    shapes = [p.variable.shape for p in tower.owned_parameters()]
    assert [p.variable.shape for p in copy.owned_parameters()] == shapes
    copy.set_weights(tower.get_weights())
    np.testing.assert_array_equal(copy(INPUTS, 0), tower(INPUTS, 0))

    table = MaskedEmbedding(10, EMBEDDING)
    query = make_query(table)
    config = query.get_config()
    with pytest.raises(TypeError, match="history_table"):  # how Keras wraps it
        Tower.from_config(config)
    with pytest.raises(ValueError, match="history_table"):
        Tower(**config)
    again = Tower.from_config(dict(config) | {"history_table": table})
    assert again.get_config() == config


def test_save_and_load_restores_weights_and_owners(tmp_path):
    tower = make_tower()
    randomize_owners(tower, np.random.default_rng(0))
    path = tf.train.Checkpoint(tower=tower).write(str(tmp_path / "checkpoint"))
    other = make_tower()
    tf.train.Checkpoint(tower=other).read(path).assert_consumed()
    for old, new in zip(
        tower.owned_parameters(), other.owned_parameters(), strict=True
    ):
        np.testing.assert_array_equal(old.variable, new.variable)
        np.testing.assert_array_equal(old.owner, new.owner)
    np.testing.assert_array_equal(tower(INPUTS, 1), other(INPUTS, 1))


def test_column_names_that_tensorflow_would_refuse_or_confuse():
    names = ["brand name", "größe", "$x", "a/b", "output", "hidden_0", "feature_1"]
    tower = make_tower(features=[FeatureSpec(name, "vector", 2) for name in names])
    inputs = {name: tf.ones([1, 2]) for name in names} | {"item_id": tf.constant([3])}
    compiled = tf.function(lambda inputs: tower(inputs))
    np.testing.assert_allclose(compiled(inputs), tower(inputs), rtol=1e-5)
    parameters = tower.owned_parameters()
    assert len({p.name for p in parameters}) == len(parameters) == 1 + 7 + 2 * 2 + 1
    assert "candidate/features/brand name/kernel" in {p.name for p in parameters}


def test_variable_names_are_distinct():
    names = [v.name for v in make_tower().variables]
    assert len(set(names)) == len(names)
