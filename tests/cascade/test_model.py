"""CSMF: blocks, exact fusion, the loss of a stage, and a TFRS model to fit."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.cascade import capacity
from tfcsmf.cascade.capacity import Shares
from tfcsmf.cascade.model import CSMF, feature_specs, hidden_ids
from tfcsmf.cascade.pruning import CumulativePercentile
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.losses import adaptive_margin
from tfcsmf.towers import FREE

SETTINGS = BatchSettings(32, 8, 0, 6, 0)


def pruned(model, stages=3, seed=0):
    """A model all of whose stages were "trained" (at random) and frozen."""
    for stage in range(stages - 1):
        capacity.reopen(model, "reinitialize", None, seed + stage)
        capacity.prune(
            model, stage, CumulativePercentile(), Shares(0.3, 0.3, 0.4), "weight",
            stages - 1 - stage,
        )  # fmt: skip
    capacity.reopen(model, "reinitialize", None, seed + stages)
    capacity.take_over(model, stages - 1)
    return model


@pytest.fixture
def row_batch(tiny_log):
    return next(iter(StageBatches(tiny_log, "click", SETTINGS).dataset(1.0, 0, 0, 1)))


@pytest.fixture(params=["tiny_log", "untimed_log"])
def any_batch(request, table_rows):
    """One positive per row for the most part, or many."""
    log = request.getfixturevalue(request.param)
    return table_rows(
        next(iter(StageBatches(log, "click", SETTINGS).dataset(1, 0, 0, 1)))
    )


@pytest.fixture
def batch(row_batch, table_rows):
    """With table rows as ids, which the towers can be asked for directly."""
    return table_rows(row_batch)


def test_parameters_are_those_of_a_plain_two_tower_model(build, tiny_log):
    model = build()
    users, items = tiny_log.users, tiny_log.items

    def tower(table, histories):
        encoded = sum(
            4 * (table.features[e.name].shape[1] if e.kind == "vector" else e.num_rows)
            for e in table.encoders
        )
        width = 6 + 4 * len(table.encoders) + of_history * histories
        return table.num_rows * 6 + encoded + (width + 1) * 10 + (10 + width) * 8

    # A history has the ids and the features of its items.
    of_history = 6 + 4 * len(items.encoders)
    expected = tower(users, 3) + tower(items, 0)
    assert model.num_parameters == expected
    trainable = model.trainable_variables
    assert sum(int(np.prod(v.shape)) for v in trainable) == expected
    assert len({v.ref() for v in trainable}) == len(trainable)
    assert {v.ref() for v in trainable} == {
        p.variable.ref() for p in model.owned_parameters
    }
    assert len({p.name for p in model.owned_parameters}) == len(trainable)
    before = model.num_parameters
    assert pruned(model).num_parameters == before


def test_specs_of_all_feature_kinds(tiny_log):
    specs = {s.name: s for s in feature_specs(tiny_log.items)}
    assert specs["image"].size == 9  # 8 and the flag of a missing vector
    assert specs["category"].kind == "categorical" and specs["tags"].kind == "multi"
    for encoder in tiny_log.items.encoders:
        if encoder.kind != "vector":
            assert specs[encoder.name].size == encoder.num_rows


@pytest.mark.parametrize("blocks", ["nested", "disjoint"])
def test_query_vectors_are_zero_outside_their_blocks(build, some_inputs, blocks):
    model = pruned(build(f"cascade.blocks={blocks}"))
    owner = model.block_owner.numpy()
    for stage in range(3):
        used = owner <= stage if blocks == "nested" else owner == stage
        query = model.query_vectors(some_inputs[0], stage).numpy()
        assert (query[:, ~used] == 0).all()
        assert (np.abs(query[:, used]).max(axis=0) > 0).all()
        raw = model.query_tower(some_inputs[0], stage).numpy()
        np.testing.assert_array_equal(query[:, used], raw[:, used])


def test_candidate_vectors_are_the_blocks_side_by_side(build, some_inputs):
    model = pruned(build())
    owner = model.block_owner.numpy()
    whole = model.all_blocks(some_inputs[1], 3).numpy()
    for stage in range(3):
        block = model.candidate_vectors(some_inputs[1], stage).numpy()
        assert (block[:, owner != stage] == 0).all()
        np.testing.assert_array_equal(
            block[:, owner == stage], whole[:, owner == stage]
        )
        up_to = model.all_blocks(some_inputs[1], stage + 1).numpy()
        np.testing.assert_array_equal(up_to, np.where(owner <= stage, whole, 0))


@pytest.mark.parametrize("blocks", ["nested", "disjoint"])
def test_scores_and_exact_fusion(build, some_inputs, blocks):
    model = pruned(build(f"cascade.blocks={blocks}"))
    owner = model.block_owner.numpy()
    catalogue = model.all_blocks(some_inputs[1], 3).numpy()
    scores = []
    for objective in range(3):
        query = model.query_tower(some_inputs[0], objective).numpy()
        first = 0 if blocks == "nested" else objective
        scores.append(
            sum(
                query[:, owner == stage] @ catalogue[:, owner == stage].T
                for stage in range(first, objective + 1)
            )
        )
        vectors = model.query_vectors(some_inputs[0], objective).numpy()
        np.testing.assert_allclose(vectors @ catalogue.T, scores[-1], atol=1e-5)
    weights = [0.7, -1.5, 2.0]  # negative weights are legal
    fused = sum(
        w * model.query_vectors(some_inputs[0], objective).numpy()
        for objective, w in enumerate(weights)
    )
    explicit = sum(w * s for w, s in zip(weights, scores, strict=True))
    np.testing.assert_allclose(fused @ catalogue.T, explicit, atol=1e-5)


def test_normalised_vectors_keep_directions_and_fusion(build, some_inputs):
    plain, model = pruned(build()), pruned(build("towers.normalize=true"))
    assert model.num_parameters == plain.num_parameters
    owner = model.block_owner.numpy()
    catalogue = model.all_blocks(some_inputs[1], 3).numpy()
    for stage in range(3):
        query = model.query_vectors(some_inputs[0], stage).numpy()
        raw = plain.query_vectors(some_inputs[0], stage).numpy()
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(query, raw / lengths, atol=1e-6)
        block = catalogue[:, owner == stage]
        raw = plain.candidate_vectors(some_inputs[1], stage).numpy()[:, owner == stage]
        square = np.square(raw).sum(axis=1, keepdims=True)
        expected = raw / np.sqrt(square + (1 if stage else 0))
        np.testing.assert_allclose(block, expected, atol=1e-6)


def test_training_vectors_use_free_dimensions_and_raw_parameters(build, some_inputs):
    model = build()
    assert (model.block_owner.numpy() == FREE).all()
    raw = model.query_tower(some_inputs[0])
    np.testing.assert_array_equal(model.query_vectors(some_inputs[0], 0, True), raw)
    assert not model.query_vectors(some_inputs[0], 0).numpy().any()
    capacity.prune(
        model, 0, CumulativePercentile(), Shares(0.3, 0.3, 0.4), stages_left=2
    )
    capacity.reopen(model, "reinitialize", None, 0)
    free = model.block_owner.numpy() == FREE
    block = model.candidate_vectors(some_inputs[1], 1, True).numpy()
    assert (block[:, ~free] == 0).all() and (np.abs(block[:, free]).max(0) > 0).all()
    query = model.query_vectors(some_inputs[0], 1, True).numpy()
    assert (np.abs(query).max(axis=0) > 0).all()


def log_sum_exp(rows):
    top = rows.max(axis=1, keepdims=True)
    return np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0]


def expected_loss(model, batch, query, candidate, margin=0.0):
    """The definition, positive by positive."""
    rows, columns = batch["positives"].numpy().T
    scores = (query @ tf.transpose(candidate)).numpy().astype(np.float64)
    positives = scores[rows, columns]
    if "counts" in batch:
        scores = scores + np.log(batch["counts"].numpy())
    if model.sampling_probability is not None:
        draws = batch["counts"].numpy().sum() - len(rows) / len(scores)
        probability = model.sampling_probability.numpy()[batch["items"].numpy()]
        scores = scores - np.log(probability * draws)
    scores = scores + margin
    scores[tuple(batch["excluded_pairs"].numpy().T)] = -np.inf
    scores[rows, columns] = -np.inf
    negatives = scores[rows]  # [n, columns]
    total = log_sum_exp(np.concatenate([negatives, positives[:, None]], axis=1))
    return (total - positives).mean()


@pytest.mark.parametrize("corrected", [True, False])
def test_loss_of_the_first_stage(build, tiny_log, table_rows, corrected):
    model = build()
    # Negatives are drawn, or else the catalogue is small enough.
    batches = StageBatches(
        tiny_log, "click", replace(SETTINGS, whole_catalogue=0 if corrected else 40)
    )
    batch = table_rows(next(iter(batches.dataset(1.0, 0, 0, 1))))
    if corrected:
        model.sampling_probability = tf.constant(batches.probability)
    expected = expected_loss(
        model, batch, model.query_tower(batch["query"]),
        model.candidate_tower(batch["candidate"]),
    )  # fmt: skip
    assert float(model.compute_loss(batch)) == pytest.approx(expected, rel=1e-5)


def second_stage(model, some_inputs):
    capacity.prune(
        model, 0, CumulativePercentile(), Shares(0.3, 0.3, 0.4), stages_left=2
    )
    model.frozen_candidates = model.all_blocks(some_inputs[1], 1)
    capacity.reopen(model, "reinitialize", None, 0)
    model.stage = 1
    return model


@pytest.mark.parametrize(
    ("form", "strength"),
    [("none", 0.1), ("confusable", 0.0), ("confusable", 2.0), ("order", 0.7)],
)
def test_loss_of_a_later_stage(build, some_inputs, any_batch, form, strength):
    batch = any_batch
    model = second_stage(
        build(f"loss.margin.form={form}", f"loss.margin.strength={strength}"),
        some_inputs,
    )
    frozen = tf.gather(model.frozen_candidates, batch["items"])
    margin = 0.0
    if form != "none" and strength:
        upstream = model.query_vectors(batch["query"], 0) @ tf.transpose(frozen)
        positives = batch["positives"].numpy()
        own = tf.gather_nd(upstream, positives)
        mean = tf.math.segment_mean(own, positives[:, 0])
        margin = adaptive_margin(upstream, form, strength, positives=mean).numpy()
    query = model.query_vectors(batch["query"], 1, True)
    block = model.candidate_vectors(batch["candidate"], 1, True)
    expected = expected_loss(model, batch, query, block + frozen, margin)
    assert float(model.compute_loss(batch)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ownership", ["entries", "columns", "frozen"])
@pytest.mark.parametrize("stage", [0, 1])
def test_row_blocks_change_neither_loss_nor_gradients(
    build, some_inputs, row_batch, table_rows, stage, ownership
):
    model = build(
        "loss.margin.strength=1",
        "towers.query_id_dropout=0.5",
        f"towers.embedding_ownership={ownership}",
    )
    if stage:
        model = second_stage(model, some_inputs)
    variables = [p.variable for p in model.owned_parameters]
    results = []
    for batch in (row_batch, table_rows(row_batch)):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=True)
        gradients = tape.gradient(loss, variables)
        results.append([loss, *map(tf.convert_to_tensor, gradients)])
        tables = [
            model.query_tower.id_table.table,
            model.candidate_tower.id_table.table,
        ]
        for table in tables:
            (index,) = (i for i, v in enumerate(variables) if v is table)
            rows = gradients[index].indices.numpy()
            assert (len(np.unique(rows)) == len(rows)) == (batch is row_batch)
    for mine, plain in zip(*results, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


def test_frozen_candidates_take_part_in_the_loss(build, some_inputs, batch):
    model = second_stage(build("loss.margin.form=none"), some_inputs)
    loss = float(model.compute_loss(batch))
    frozen = model.frozen_candidates
    model.frozen_candidates = tf.random.stateless_normal(frozen.shape, [0, 1]) + frozen
    assert abs(float(model.compute_loss(batch)) - loss) > 1e-3
    # Without them the same loss would see the block in training alone.
    model.frozen_candidates = tf.zeros_like(frozen)
    block = model.candidate_vectors(batch["candidate"], 1, True)
    query = model.query_vectors(batch["query"], 1, True)
    expected = expected_loss(model, batch, query, block)
    assert float(model.compute_loss(batch)) == pytest.approx(expected, rel=1e-5)


def test_disjoint_blocks_ignore_frozen_candidates(build, some_inputs, batch):
    model = second_stage(
        build("loss.margin.form=none", "cascade.blocks=disjoint"), some_inputs
    )
    loss = float(model.compute_loss(batch))
    model.frozen_candidates = 5.0 * model.frozen_candidates
    assert float(model.compute_loss(batch)) == pytest.approx(loss, rel=1e-6)


def test_a_share_of_the_batches_has_margins(build, some_inputs, any_batch):
    def losses(*assignments):
        model = second_stage(build("loss.margin.strength=2", *assignments), some_inputs)
        compute = tf.function(model.compute_loss)
        batches = [any_batch | {"seed": tf.constant([0, s])} for s in range(40)]
        return [
            [float(compute(b, training)) for b in batches] for training in (True, False)
        ]

    with_margins, always = losses("loss.margin.share=1")
    without, _ = losses("loss.margin.form=none")
    some, validated = losses("loss.margin.share=0.3")
    assert validated == always
    due = [a == pytest.approx(b) for a, b in zip(some, with_margins, strict=True)]
    assert 5 <= sum(due) <= 20
    for value, is_due, bare, full in zip(some, due, without, with_margins, strict=True):
        assert full > bare * 1.01
        assert value == pytest.approx(full if is_due else bare)


def test_margin_of_strength_zero_is_bit_equal_to_none(build, some_inputs, batch):
    results = []
    for form, strength in (("none", 1.0), ("confusable", 0.0), ("confusable", 1.0)):
        model = second_stage(
            build(f"loss.margin.form={form}", f"loss.margin.strength={strength}"),
            some_inputs,
        )
        variables = [p.variable for p in model.owned_parameters if p.role != "table"]
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch)
        results.append([loss, *tape.gradient(loss, variables)])
    for plain, zero in zip(results[0], results[1], strict=True):
        np.testing.assert_array_equal(plain, zero)
    assert float(results[2][0]) > float(results[0][0])


def test_a_later_stage_needs_frozen_candidates(build, batch):
    model = build()
    model.stage = 1
    with pytest.raises(ValueError, match="`frozen_candidates` should be set"):
        model.compute_loss(batch)


def test_dropout_in_training_only_and_by_the_seed_of_the_batch(build, batch):
    model = build("towers.dropout=0.4")
    plain = float(model.compute_loss(batch))
    assert float(model.compute_loss(batch)) == plain
    dropped = float(model.compute_loss(batch, training=True))
    assert dropped != plain
    assert float(model.compute_loss(batch, training=True)) == dropped
    other = batch | {"seed": batch["seed"] + 1}
    assert float(model.compute_loss(other, training=True)) != dropped


def test_is_a_tfrs_model_that_fits_with_a_stock_optimizer(build, tiny_log):
    model = build("towers.query_id_dropout=0", "towers.candidate_id_prior=0")
    assert isinstance(model, tfrs.Model) and isinstance(model, CSMF)
    batches = StageBatches(tiny_log, "exposure", SETTINGS)
    model.sampling_probability = tf.constant(batches.probability)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.05))
    stream = batches.dataset(1.0, 0, 0, 20).cache()
    before = [p.variable.numpy() for p in model.owned_parameters]
    fresh = [float(model.compute_loss(batch)) for batch in stream]
    history = model.fit(stream, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for p, old in zip(model.owned_parameters, before, strict=True):
        assert (p.variable.numpy() != old).any(), p.name
    trained = [float(model.compute_loss(batch)) for batch in stream]
    assert np.mean(trained) < np.mean(fresh) - 0.05


def test_the_seed_decides_the_initial_parameters(build):
    first, same, other = build(), build(), build("seed=1")
    pairs = zip(
        *(model.owned_parameters for model in (first, same, other)), strict=True
    )
    for a, b, c in pairs:
        np.testing.assert_array_equal(a.variable, b.variable)
        assert a.role == "bias" or (a.variable.numpy() != c.variable.numpy()).any()


def test_initial_tables_of_ids_are_small(build):
    model = build()
    # Items have features here, beside which their ids are smaller.
    for tower, scale in ((model.query_tower, 0.015), (model.candidate_tower, 0.01)):
        # About 60 x 6 and 40 x 6 entries.
        assert tower.id_table.table.numpy().std() == pytest.approx(scale, rel=0.2)


def test_ids_of_rare_items_are_hidden_more_often(tiny_log):
    chances = hidden_ids(tiny_log, prior=8.0)
    counts = np.zeros(tiny_log.items.num_rows)
    for examples in tiny_log.train.values():
        for item in examples.pairs.items:
            counts[item + NUM_RESERVED] += 1
    trained = slice(NUM_RESERVED, None)
    expected = 8 / (8 + counts[trained])
    np.testing.assert_allclose(chances[trained], expected, rtol=1e-6)
    assert not chances[:NUM_RESERVED].any() and len(set(counts)) > 2
    assert not hidden_ids(tiny_log, prior=0.0).any()
    twos = hidden_ids(tiny_log, 8.0, np.full(tiny_log.items.size, 2))
    np.testing.assert_allclose(twos[trained], 8 / (8 + 2), rtol=1e-6)


@pytest.mark.parametrize("ending", ["checkpoint", "weights", "weights.h5"])
def test_save_and_load_restores_weights_and_owners(
    build, some_inputs, tmp_path, ending
):
    model, other = pruned(build()), build("seed=1")
    path = str(tmp_path / ending)
    if ending == "checkpoint":
        path = tf.train.Checkpoint(model=model).write(path)
        tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    else:
        model.save_weights(path)
        other.load_weights(path)
    np.testing.assert_array_equal(model.block_owner, other.block_owner)
    for old, new in zip(model.owned_parameters, other.owned_parameters, strict=True):
        np.testing.assert_array_equal(old.variable, new.variable)
        np.testing.assert_array_equal(old.owner, new.owner)
    for stage in range(3):
        np.testing.assert_array_equal(
            model.query_vectors(some_inputs[0], stage),
            other.query_vectors(some_inputs[0], stage),
        )
