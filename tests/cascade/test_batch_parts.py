"""What workers compute of a batch adds up to what one process computes of it."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.packed_gradients import SMALL_TABLE, pack_gradient
from tfcsmf.cascade.samplers import make_sampler, stage_negatives
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.negatives.clusters import build_clusters
from tfcsmf.towers import FREE

ROWS = 32
# Uneven, so that no part is a mirror of another one.
BOUNDS = [0, 9, 10, ROWS]
CASES = {
    "counted": ["loss.hard_negatives=8", "towers.normalize=True"],
    "mixed": [
        "loss.whole_catalogue=0",
        "towers.query_id_dropout=.5",
        "towers.dropout=.3",
        "towers.history_dropout=.4",
    ],
    "cross_batch": ["loss.negatives.sampler=cross_batch", "loss.negatives.memory=40"],
}
SLOW = {
    "whole catalogue": [],
    "uncorrected": ["loss.correct_sampling=False", "loss.whole_catalogue=0"],
    "uniform": ["loss.negatives.sampler=uniform"],
    "esans": [
        "loss.negatives.sampler=esans",
        "loss.negatives.esans.clusters={first_level: 3, second_level: 3}",
        "loss.negatives.esans.clusters.alignment_steps=2",
    ],
    "sequences": [
        "towers.query_encoder=heterrec",
        "sequence={dropout: 0, width: 8, feed_forward: 8, length: 6}",
    ],
}


def later_stage(config, log):
    """A model in its second stage, and batches of it; nothing is trained."""
    model = build_model(config, log)
    draws = np.random.default_rng(0)
    for parameter in model.owned_parameters:
        shape = parameter.owner.shape
        owners = np.where(draws.random(shape) < 0.4, 0, FREE).astype(np.int8)
        parameter.owner.assign(owners)
        # Larger than at the start, so that no gradient is next to nothing.
        noise = draws.normal(0, 0.2, parameter.variable.shape)
        parameter.variable.assign_add(tf.constant(noise, tf.float32))
    model.block_owner.assign(np.array([0, FREE] * 4, np.int8))
    model.stage = 1
    name = config.sampler("click")
    clusters = None
    if name == "esans":
        settings = config.loss.negatives.esans.clusters
        clusters = build_clusters(log, settings, 0)
    loss = config.loss
    batches = StageBatches(
        log,
        "click",
        BatchSettings(
            ROWS,
            loss.uniform_negatives,
            loss.hard_negatives,
            6,
            0,
            whole_catalogue=loss.whole_catalogue,
            sampler=make_sampler(name, log, "click", config, clusters),
        ),
    )
    frozen = draws.normal(size=(log.items.size, 8)) * np.tile([1.0, 0.0], 4)
    model.frozen_candidates = tf.constant(frozen, tf.float32)
    if loss.correct_sampling and not batches.has_whole_catalogue:
        model.sampling_probability = tf.constant(batches.probability)
    model.negatives = stage_negatives(config, batches, 8)
    return model, batches


def gradients_of(model, batch):
    """Returns the loss and dense gradients; and which rows sparse ones name."""
    variables = [parameter.variable for parameter in model.owned_parameters]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    gradients = tape.gradient(loss, variables)
    rows = [g.indices if isinstance(g, tf.IndexedSlices) else None for g in gradients]
    dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    return loss, dense, rows


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_batch(tiny_config, tiny_log, case):
    check_parts(Config.from_dict(tiny_config.to_dict(), CASES[case]), tiny_log)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_parts_of_other_losses_add_up(tiny_config, tiny_log, case):
    check_parts(Config.from_dict(tiny_config.to_dict(), SLOW[case]), tiny_log)


def check_parts(config, log):
    model, made = later_stage(config, log)
    batches = list(made.dataset(1.0, 0, 0, 2))
    memory = model.negatives.memory
    if memory is not None:
        model.compute_loss(batches[0], training=True)
        before = {n: v.numpy() for n, v in memory.state().items()}
    batch = batches[1]
    if memory is None:
        count = len(batch["positives"])
        weights = np.random.default_rng(1).uniform(0.3, 3.0, count)
        batch = batch | {"weight": tf.constant(weights, tf.float32)}
    loss, expected, rows = gradients_of(model, batch)
    assert sum(gradient is not None for gradient in expected) >= 8
    if memory is not None:
        pushed = {n: v.numpy() for n, v in memory.state().items()}
        assert (pushed["memory/items"] != before["memory/items"]).any()
    losses, sums = 0.0, [0.0 if g is None else tf.zeros_like(g) for g in expected]
    for first, last in zip(BOUNDS, BOUNDS[1:], strict=False):
        if memory is not None:
            for name, variable in memory.state().items():
                variable.assign(before[name])
        part = {**batch, "part": tf.constant([first, last, ROWS])}
        own, gradients, named = gradients_of(model, part)
        losses += own
        for number, gradient in enumerate(gradients):
            assert (gradient is None) == (expected[number] is None)
            if gradient is not None:
                sums[number] += gradient
        for table in model.id_tables.values():
            variables = [p.variable is table.table for p in model.owned_parameters]
            number = variables.index(True)
            # Workers send the values alone.
            np.testing.assert_array_equal(named[number], rows[number])
        if memory is not None:
            for name, variable in memory.state().items():
                np.testing.assert_array_equal(variable, pushed[name])
    np.testing.assert_allclose(losses, loss, rtol=1e-5)
    for parameter, ours, theirs in zip(
        model.owned_parameters, sums, expected, strict=True
    ):
        if theirs is not None:
            scale = float(tf.reduce_max(tf.abs(theirs)))
            np.testing.assert_allclose(
                ours, theirs, rtol=1e-4, atol=2e-6 * scale, err_msg=parameter.name
            )


def unpacked(parts, variable, same_rows=False):
    """The sum of several workers' gradients, as they would exchange them."""
    packed = [pack_gradient(part, variable, same_rows) for part in parts]
    added = [tf.add_n(list(t)) for t in zip(*(p.added for p in packed), strict=True)]
    joined = [tf.concat(t, 0) for t in zip(*(p.joined for p in packed), strict=True)]
    return packed[0].unpack(added, joined)


@pytest.mark.parametrize("size", [6, SMALL_TABLE + 1])
def test_sparse_sums_name_the_rows_of_all_workers(size):
    table = tf.Variable(tf.zeros([size, 2]))
    values = tf.constant([[1.0, 2], [3, 4], [5, 6]])
    first = tf.IndexedSlices(values, tf.constant([4, 1, 4]))
    # A gradient of zero still says that the row was looked up.
    values = tf.constant([[0.0, 0], [1, 1]])
    second = tf.IndexedSlices(values, tf.constant([2, 1]))
    both = unpacked([first, second], table)
    assert sorted(set(both.indices.numpy())) == [1, 2, 4]
    dense = np.zeros([size, 2])
    np.add.at(dense, both.indices.numpy(), both.values.numpy())
    expected = [[0, 0], [4, 5], [0, 0], [0, 0], [6, 8], [0, 0]]
    np.testing.assert_array_equal(dense[:6], expected)


def test_gradients_that_name_the_same_rows_are_added_in_place():
    table = tf.Variable(tf.zeros([6, 1]))
    parts = [tf.IndexedSlices(tf.constant([[1.0], [2.0]]), [5, 3]) for _ in range(2)]
    both = unpacked(parts, table, same_rows=True)
    assert both.indices == [5, 3] and both.values.numpy().tolist() == [[2.0], [4.0]]
    assert unpacked([None, None], table) is None
    dense = unpacked([tf.ones([2]), tf.ones([2])], tf.Variable([0.0, 0.0]))
    assert dense.numpy().tolist() == [2.0, 2.0]
