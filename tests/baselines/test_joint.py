"""Joint training: the joined log, mixed batches, the loss, the towers."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from system_contract import CONFIG

from tfcsmf.baselines.joint_log import JointBatches, join
from tfcsmf.baselines.objective_towers import MixtureTower
from tfcsmf.baselines.registry import make_system
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings
from tfcsmf.errors import ConfigError

SETTINGS = BatchSettings(32, 8, 0, 6, 0)


def batch_of(joint, step=0):
    batches = JointBatches(joint, SETTINGS)
    return next(iter(batches.dataset(1.0, 0, step, step + 1)))


def weight_of(joint, number):
    """The weight of an objective's examples, one for all of them."""
    weights = joint.log.train[joint.name].weights[joint.objective == number]
    assert len(set(weights)) == 1
    return weights[0]


def test_all_examples_are_there_and_weigh_the_same_per_objective(log):
    joint = join(log, one_score=False)
    sizes = [len(log.train[name].pairs) for name in log.objectives]
    assert len(joint.log.train[joint.name].pairs) == sum(sizes)
    np.testing.assert_array_equal(np.bincount(joint.objective), sizes)
    totals = np.array([weight_of(joint, number) for number in range(2)]) * sizes
    np.testing.assert_allclose(totals, totals[0], rtol=1e-6)
    np.testing.assert_allclose(totals.sum(), sum(sizes), rtol=1e-6)


def test_known_positives_are_those_of_the_objective_or_of_all(log):
    users = log.users.size
    apart, together = join(log, False), join(log, True)
    for number, name in enumerate(log.objectives):
        for user in range(0, users, 17):
            row = number * users + user
            own = log.known[name].row(user)
            np.testing.assert_array_equal(apart.log.known[apart.name].row(row), own)
            every = np.unique(
                np.concatenate([log.known[o].row(user) for o in log.objectives])
            )
            np.testing.assert_array_equal(
                together.log.known[together.name].row(row), every
            )


def test_batches_mix_objectives_and_exclude_by_objective(log):
    joint = join(log, one_score=False)
    batch = batch_of(joint)
    objective = batch["objective"].numpy()
    assert set(objective) == {0, 1}
    positives = batch["positives"].numpy()
    own = objective[positives[:, 0]]
    weights = np.array([weight_of(joint, 0), weight_of(joint, 1)])
    np.testing.assert_array_equal(batch["weight"], weights[own])
    users = tf.gather(batch["rows"]["user_id"], batch["query"]["user_id"]).numpy()
    items, got = (
        batch["items"].numpy(),
        set(map(tuple, batch["excluded_pairs"].numpy())),
    )
    expected = set()
    for row in range(len(objective)):
        user = np.flatnonzero(log.users.id_rows == users[row])
        if len(user) != 1:  # shares the row UNKNOWN
            continue
        known = log.known[log.objectives[objective[row]]].row(int(user[0]))
        expected |= {(row, int(c)) for c in np.flatnonzero(np.isin(items, known))}
        # Every positive is among its own user's known ones.
        targets = items[positives[positives[:, 0] == row, 1]]
        assert len(targets) and np.isin(targets, known).all()
    rows = {row for row, _ in expected}
    assert {pair for pair in got if pair[0] in rows} == expected


def test_the_loss_is_every_objectives_own_softmax(log):
    model = make_system("shared_bottom", CONFIG).build(log)
    joint = join(log, one_score=False)
    batches = JointBatches(joint, SETTINGS)
    assert batches.num_examples == len(joint.objective)  # those of all
    model.sampling_probability = tf.constant(batches.probability)
    batch = batch_of(joint)
    blocks = model.row_blocks(batch["rows"])
    candidate = model.candidate_vectors(batch["candidate"], 0, True, None, blocks)
    total = 0.0
    for number in range(2):
        query = model.query_vectors(batch["query"], number, True, None, blocks)
        mine = batch["objective"].numpy()[batch["positives"][:, 0]] == number
        total += model.task(
            query,
            candidate,
            positives=batch["positives"],
            candidate_counts=batch["counts"],
            sample_weight=tf.constant(mine * weight_of(joint, number), tf.float32),
            candidate_sampling_probability=tf.gather(
                model.sampling_probability, batch["items"]
            ),
            excluded_pairs=batch["excluded_pairs"],
            compute_metrics=False,
            compute_batch_metrics=False,
        )
    assert float(model.compute_loss(batch)) == pytest.approx(
        float(total) / len(batch["positives"]), rel=1e-5
    )


@pytest.mark.parametrize("name", ["union", "shared_bottom_wide", "mmoe", "ple"])
def test_every_parameter_is_trained(log, name):
    model = make_system(name, CONFIG).build(log)
    batch = batch_of(join(log, one_score=False))
    variables = [p.variable for p in model.owned_parameters]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    gradients = tape.gradient(loss, variables)
    for parameter, gradient in zip(model.owned_parameters, gradients, strict=True):
        assert gradient is not None, parameter.name
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.abs(values).max() > 0, parameter.name
    names = [p.name for p in model.owned_parameters]
    assert len(set(names)) == len(names)
    assert model.num_parameters == sum(
        v.numpy().size for v in model.trainable_variables
    )


def queries_of(model, log):
    batch = batch_of(join(log, one_score=False))
    blocks = model.row_blocks(batch["rows"])
    return [
        model.query_vectors(batch["query"], number, True, None, blocks).numpy()
        for number in range(2)
    ]


def test_wide_heads_fill_blocks_of_their_own(log):
    model = make_system("ple_wide", CONFIG).build(log)
    first, second = queries_of(model, log)
    assert model.dimension == 16
    assert not first[:, 8:].any() and not second[:, :8].any()
    assert first[:, :8].any() and second[:, 8:].any()


def test_one_score_for_all_or_one_each(log):
    first, second = queries_of(make_system("union", CONFIG).build(log), log)
    np.testing.assert_array_equal(first, second)
    first, second = queries_of(make_system("mmoe", CONFIG).build(log), log)
    assert np.abs(first - second).max() > 0


@pytest.mark.parametrize("name", ["union", "shared_bottom", "mmoe", "ple"])
@pytest.mark.parametrize("wide", [False, True])
def test_every_head_starts_as_the_sum_of_embeddings(log, name, wide):
    if wide and name == "union":
        return
    sizes = ["towers.embedding_dimension=8"]  # as many as dimensions
    config = Config.from_dict(CONFIG.to_dict(), sizes)
    model = make_system(f"{name}_wide" if wide else name, config).build(log)
    tower = model.query_tower
    bottom = tower.heads[0].kernel.shape[0] - tower.input_width
    for head in tower.heads:
        kernel = head.kernel.numpy()
        assert kernel.shape[1] == 8
        names = ("history_exposure", "history_click")
        starts = [0, *(tower.history_columns(name).start for name in names)]
        for start in starts:
            ids = kernel[bottom + start : bottom + start + 8]
            np.testing.assert_array_equal(ids, np.eye(8))
    assert 0 < np.abs(tower.heads[0].kernel.numpy()[:bottom]).max() < 0.1
    # Of candidates every block starts as the embedding.
    kernel = model.candidate_tower.output_layer.kernel.numpy()
    blocks = kernel.shape[1] // 8
    assert blocks == (2 if wide else 1)
    np.testing.assert_array_equal(kernel[10:18], np.tile(np.eye(8), blocks))


def test_without_hidden_layers_heads_see_the_encodings_alone(log):
    config = Config.from_dict(CONFIG.to_dict(), ["towers.hidden_units=[]"])
    model = make_system("shared_bottom", config).build(log)
    tower = model.query_tower
    assert tower.heads[0].kernel.shape[0] == tower.input_width
    batch = batch_of(join(log, one_score=False))
    blocks = model.row_blocks(batch["rows"])
    encodings = tower.encode(batch["query"], None, None, blocks).numpy()
    vectors = tower.vectors(batch["query"], None, blocks).numpy()
    for number, head in enumerate(tower.heads):
        expected = encodings @ head.kernel.numpy()
        np.testing.assert_allclose(vectors[:, number], expected, rtol=1e-4, atol=1e-6)


def test_gates_weigh_experts():
    """With a gate of zeros every expert counts the same; with a large bias one."""
    table = SimpleNamespace(dimension=0)
    tower = MixtureTower(
        "user_id",
        5,
        dimension=3,
        hidden_units=[4],
        embedding_dimension=2,
        objectives=2,
        experts=3,
        history_table=table,
    )
    tower.build(None)
    for gate in tower.gates:
        gate.kernel.assign(tf.zeros_like(gate.kernel))
    tower.gates[1].bias.assign([0.0, 100.0, 0.0])
    x = tf.constant([[1.0, -2.0], [0.5, 3.0]])
    outputs = np.stack([expert[0](x) for expert in tower.experts])
    mean, second = tower.bottom(x, None)
    np.testing.assert_allclose(mean, outputs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(second, outputs[1], rtol=1e-5)


def test_experts_need_a_hidden_layer(log):
    config = Config.from_dict(CONFIG.to_dict(), ["towers.hidden_units=[]"])
    for name in ("mmoe", "ple"):
        with pytest.raises(ConfigError, match=r"towers\.hidden_units"):
            make_system(name, config).build(log)
    assert make_system("shared_bottom", config).build(log).dimension == 8


@pytest.mark.parametrize("name", ["mmoe", "mmoe_wide"])
def test_normalised_vectors_have_length_one_in_every_block(log, name):
    config = Config.from_dict(CONFIG.to_dict(), ["towers.normalize=true"])
    model = make_system(name, config).build(log)
    batch = batch_of(join(log, one_score=False))
    blocks = model.row_blocks(batch["rows"])
    wide = name.endswith("_wide")
    size = config.towers.dimension
    candidates = model.candidate_vectors(batch["candidate"], 0, blocks=blocks).numpy()
    apart = candidates.reshape(len(candidates), -1, size)
    assert apart.shape[1] == (2 if wide else 1)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=2), 1, rtol=1e-5)
    for objective in range(2):
        query = model.query_vectors(batch["query"], objective, blocks=blocks).numpy()
        lengths = np.linalg.norm(query.reshape(len(query), -1, size), axis=2)
        # A wide head fills its own block alone.
        expected = np.eye(2)[objective] if wide else [1]
        np.testing.assert_allclose(lengths, np.tile(expected, (len(query), 1)), 1e-5)
