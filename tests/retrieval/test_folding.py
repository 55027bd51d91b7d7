import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade import capacity
from tfcsmf.cascade.dimensions import rotate_free_dimensions
from tfcsmf.cascade.histories import open_histories
from tfcsmf.cascade.model import build_model, history_stages
from tfcsmf.cascade.pruning import CumulativePercentile
from tfcsmf.config import Config
from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs
from tfcsmf.retrieval import folding
from tfcsmf.retrieval.folding import (
    FoldedDense,
    FoldedTable,
    FoldedTower,
    fold_history_features,
)
from tfcsmf.towers import FREE, MaskedDense, MaskedEmbedding


def test_every_pass_of_a_dense_layer_gets_its_own_plain_kernel():
    layer = MaskedDense(2, "relu")
    layer.build(tf.TensorShape([None, 2]))
    layer.kernel.assign([[1.0, 2.0], [3.0, 0.0]])
    layer.kernel_owner.assign(np.int8([[0, 1], [1, FREE]]))
    folded = FoldedDense(layer, range(3))
    both = [[1, 2], [3, 0]]
    assert folded.kernels.numpy().tolist() == [[[1, 0], [0, 0]], both, both]
    values = tf.constant([[1.0, -1.0]])
    for given in (values[tf.newaxis], tf.stack([values] * 3)):
        for stage, output in enumerate(folded(given)):
            np.testing.assert_array_equal(output, layer(values, stage))


def test_equal_passes_of_a_dense_layer_are_stored_and_computed_once():
    layer = MaskedDense(2, "relu")
    layer.build(tf.TensorShape([None, 2]))
    folded = FoldedDense(layer, range(3))
    layer.kernel_owner.assign(np.zeros((2, 2), np.int8))
    owned = FoldedDense(layer, range(3))
    for layer in (folded, owned):
        assert layer.kernels.shape[0] == 1
        assert layer(tf.ones([1, 5, 2])).shape == (1, 5, 2)


@pytest.mark.parametrize("stacked_entries", [0, 1000])
@pytest.mark.parametrize("ownership", ["entries", "columns", "frozen"])
def test_a_table_answers_every_pass(ownership, stacked_entries, monkeypatch):
    monkeypatch.setattr(folding, "_STACKED_ENTRIES", stacked_entries)
    layer = MaskedEmbedding(9, 4, ownership)
    layer.build(None)
    rng = np.random.default_rng(0)
    layer.table_owner.assign(rng.integers(0, 3, layer.table_owner.shape).astype("i1"))
    folded = FoldedTable(layer, range(3))
    rows, lists = tf.constant([3, 8]), tf.constant([[0, 5, 5], [0, 0, 0]])
    for stage in range(3):
        looked_up, pooled = folded(rows), folded.pool(lists)
        rooted = folded.pool(lists, "sqrtn")
        own = min(stage, looked_up.shape[0] - 1)  # a frozen table has one pass
        np.testing.assert_array_equal(looked_up[own], layer(rows, stage))
        np.testing.assert_array_equal(pooled[own], layer.pool(lists, stage))
        expected = layer.pool(lists, stage, combiner="sqrtn")
        np.testing.assert_array_equal(rooted[own], expected)


def test_owners_are_stored_only_where_a_pass_needs_them():
    layer = MaskedEmbedding(9, 4, "entries")
    layer.build(None)
    owner = np.zeros((9, 4), np.int8)
    owner[:, 3] = FREE
    layer.table_owner.assign(owner)
    layer.table.assign(np.where(owner == FREE, 0, layer.table.numpy()))
    folded = FoldedTable(layer, range(2))
    assert folded.owner is None
    assert folded(tf.constant([1, 2])).shape == (1, 2, 4)
    assert folded.table is layer.table  # not a copy


@pytest.mark.parametrize("which", ["shop", "normal_shop"])
def test_folded_query_passes_are_bit_equal_to_the_model(which, request, helpers):
    shop = request.getfixturevalue(which)
    users = np.arange(12, dtype=np.int32)
    arguments = helpers.query_arguments(shop, users)
    raw = helpers.named(shop, arguments)
    lists = shop.log.train_histories.lists
    ends = np.stack([lists[e].offsets[users + 1] for e in lists], axis=1)
    actual = shop.serving.query_vectors(raw).numpy()
    for stage in range(3):
        expected = shop.encoder.query_vectors(
            users, ends, shop.log.train_histories, stage
        )
        np.testing.assert_array_equal(actual[:, stage], expected)
        assert np.abs(expected).max() > 0


@pytest.mark.parametrize("hidden", ["[10]", "[]"])
def test_folded_passes_after_opened_histories_and_turned_dimensions(
    tiny_config, tiny_log, some_inputs, hidden
):
    """The stages of a cascade without its training."""
    assignments = [f"towers.hidden_units={hidden}"]
    config = Config.from_dict(tiny_config.to_dict(), assignments)
    model, stages = build_model(config, tiny_log), history_stages(config, tiny_log)
    queries, catalogue = some_inputs
    for stage in range(3):
        if stage:
            capacity.reopen(model, "reinitialize", None, seed=stage)
            open_histories(model.query_tower, stages, stage, seed=stage)
        rotate_free_dimensions(
            model,
            model.query_vectors(queries, stage, training=True).numpy(),
            model.candidate_vectors(catalogue, stage, training=True).numpy(),
        )
        if stage < 2:
            shares = capacity.Shares(0.3, 0.3, 0.4)
            criterion = CumulativePercentile()
            capacity.prune(model, stage, criterion, shares, stages_left=2 - stage)
        else:
            capacity.take_over(model, stage)
    blocks = model.block_owner.numpy() <= np.arange(3)[:, np.newaxis]
    owned = model.block_owner.numpy() == np.arange(3)[:, np.newaxis]
    candidate = FoldedTower(model.candidate_tower, owned)
    table = candidate.id_table
    features = fold_history_features(model.query_tower, candidate)
    assert features is not None
    padded = {
        name: value.to_tensor() if isinstance(value, tf.RaggedTensor) else value
        for name, value in queries.items()
    }
    folded = FoldedTower(model.query_tower, blocks, table, None, features)(padded)
    for stage in range(3):
        expected = model.query_vectors(queries, stage)
        np.testing.assert_array_equal(folded[stage], expected)
        assert np.abs(expected).max() > 0
    assert not np.allclose(folded[1], folded[2])


def test_folded_candidate_passes_are_bit_equal_to_the_model(shop):
    inputs = EntityInputs(shop.log.items, CANDIDATE_ID)(tf.range(20))
    for stage, vectors in enumerate(shop.serving.candidate_tower(inputs)):
        expected = shop.model.candidate_vectors(inputs, stage)
        np.testing.assert_array_equal(vectors, expected)


def test_normalised_candidates_are_those_of_the_model(normal_shop):
    shop = normal_shop
    ids = tf.constant([str(name) for name in shop.log.items.ids[:20]])
    # Without features: what is missing is legal.
    raw = {
        name: ids
        if name == CANDIDATE_ID
        else tf.fill(
            [20, *(size or 1 for size in spec.shape[1:])],
            "" if spec.dtype == tf.string else np.float32(np.nan),
        )
        for name, spec in shop.serving.candidate_specs().items()
    }
    vectors = shop.serving.embed_candidate(raw)["vectors"].numpy()
    encoded = shop.serving.candidate_inputs(raw)
    expected = shop.model.all_blocks(encoded, 3).numpy()
    np.testing.assert_array_equal(vectors, expected)
    assert 0 < np.linalg.norm(vectors, axis=1).max() < np.sqrt(3)


def test_disjoint_blocks_use_their_own_dimensions_only(shop):
    own = np.arange(3)[:, np.newaxis] == shop.model.block_owner.numpy()
    inputs = EntityInputs(shop.log.items, CANDIDATE_ID)(tf.range(5))
    for stage, vectors in enumerate(
        FoldedTower(shop.model.candidate_tower, own)(inputs)
    ):
        assert not vectors.numpy()[:, ~own[stage]].any()
