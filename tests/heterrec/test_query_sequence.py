"""The encoder inside the query tower: what it sees, passes, one row as in a batch."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade import capacity
from tfcsmf.cascade.histories import open_histories
from tfcsmf.cascade.model import build_model, history_stages
from tfcsmf.cascade.pruning import CumulativePercentile
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.towers import CLOSED, FREE

ENCODERS = (
    "heterrec",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("merged", "sasrec", "gru4rec")),
)
SMALL = ["sequence.length=8", "sequence.width=8", "sequence.feed_forward=8"]
HISTORIES = tuple(f"history_{event}" for event in ("exposure", "click", "conversion"))


@pytest.fixture
def make(tiny_config, tiny_log):
    def build(encoder="heterrec", *assignments):
        own = [f"towers.query_encoder={encoder}", *SMALL, *assignments]
        config = Config.from_dict(tiny_config.to_dict(), own)
        model = build_model(config, tiny_log)
        kernel = model.query_tower.output_layer.kernel
        # What it starts without, so that the encoding shows.
        kernel[-8:].assign(tf.random.stateless_normal([8, 8], [1, 2]))
        return model, history_stages(config, tiny_log)

    return build


def test_pooled_is_the_default_and_has_no_encoder(build):
    assert build().query_tower.sequence is None
    names = {p.name for p in build().owned_parameters}
    assert not any("sequence" in name for name in names)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_parameters_are_tracked_once_and_gradients_reach_them(make, tiny_log, encoder):
    model, _ = make(encoder, "cascade.history_access=all")
    owned = model.owned_parameters
    assert len({p.name for p in owned}) == len(owned)
    assert {p.variable.ref() for p in owned} == {
        v.ref() for v in model.trainable_variables
    }
    settings = BatchSettings(64, 8, 0, 6, 0)
    batches = StageBatches(tiny_log, "exposure", settings)
    batch = next(iter(batches.dataset(1.0, 0, 0, 1)))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    sequence = [p for p in owned if "/sequence/" in p.name]
    assert sequence
    gradients = tape.gradient(loss, [p.variable for p in sequence])
    for parameter, gradient in zip(sequence, gradients, strict=True):
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.abs(values).max() > 0, parameter.name


def test_at_the_start_the_vector_is_that_of_pooled_histories(
    tiny_config, tiny_log, some_inputs
):
    own = ["towers.query_encoder=heterrec", "towers.hidden_units=[]", *SMALL]
    config = Config.from_dict(tiny_config.to_dict(), own)
    tower = build_model(config, tiny_log).query_tower
    before = tower(some_inputs[0]).numpy()
    vectors = tower.sequence({name: some_inputs[0][name] for name in HISTORIES}).numpy()
    assert np.abs(vectors).max() > 0.1
    tower.output_layer.kernel[-8:].assign(tf.ones([8, 8]))
    after = tower(some_inputs[0]).numpy()
    expected = before + vectors.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_order_counts_padding_does_not_and_a_batch_is_its_rows(
    make, some_inputs, encoder
):
    model, _ = make(encoder, "cascade.history_access=all", "sequence.length=20")
    layer = model.query_tower.sequence
    # Larger than at the start, or a recurrent encoder forgets early items altogether.
    table = model.candidate_tower.id_table.table
    table.assign(20.0 * table)
    lists = {name: some_inputs[0][name] for name in HISTORIES}
    whole = layer(lists).numpy()
    padded = {n: part.to_tensor(0, [None, 11]) for n, part in lists.items()}
    np.testing.assert_allclose(layer(padded), whole, rtol=1e-4, atol=1e-5)
    for row in (0, 7):
        one = {name: part[row : row + 1] for name, part in lists.items()}
        np.testing.assert_allclose(layer(one)[0], whole[row], rtol=1e-4, atol=1e-5)
    turned = lists | {HISTORIES[0]: tf.reverse(padded[HISTORIES[0]], [1])}
    several = lists[HISTORIES[0]].row_lengths().numpy() > 1
    assert (np.abs(layer(turned).numpy() - whole).max(axis=1) > 1e-4)[several].all()
    none = {name: part[:, :0] for name, part in lists.items()}
    assert not np.any(layer(none))


def test_features_gaps_in_them_and_event_types_count(make, some_inputs, tiny_log):
    model, _ = make("heterrec", "cascade.history_access=all")
    layer, lists = (
        model.query_tower.sequence,
        {"history_click": some_inputs[0]["history_click"]},
    )
    filled = lists["history_click"].row_lengths().numpy() > 0
    before = layer(lists).numpy()[filled]
    moved = layer({"history_exposure": lists["history_click"]}).numpy()[filled]
    assert (np.abs(moved - before).max(axis=1) > 1e-4).all()  # another event
    for spec, encoder in zip(
        model.candidate_tower.features, model.candidate_tower.encoders, strict=True
    ):
        table = encoder.kernel if spec.kind == "vector" else encoder.table
        value = table.numpy()
        table.assign(value + 1.0)
        other = layer(lists).numpy()[filled]
        assert (np.abs(other - before).max(axis=1) > 1e-5).all(), spec.name
        table.assign(value)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_of_a_block_give_what_table_rows_give(make, tiny_log, table_rows, encoder):
    model, _ = make(encoder, "cascade.history_access=all")
    settings = BatchSettings(16, 8, 0, 6, 0)
    batches = StageBatches(tiny_log, "click", settings)
    batch = next(iter(batches.dataset(1.0, 0, 0, 1)))
    blocks = model.row_blocks(batch["rows"])
    for stage in (None, 0):
        got = model.query_tower(batch["query"], stage, blocks=blocks)
        rows = table_rows(batch)["query"]
        np.testing.assert_allclose(
            got, model.query_tower(rows, stage), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_stage_opens_its_history_and_moves_no_frozen_vector(
    make, some_inputs, encoder
):
    model, stages = make(encoder)
    tower, inputs = model.query_tower, some_inputs[0]
    layer = tower.sequence

    def matters(name, stage):
        """To the encoding alone, whatever the pooled histories do."""
        without = inputs | {name: inputs[name][:, :0]}
        return not np.array_equal(
            layer({n: without[n] for n in HISTORIES}, stage),
            layer({n: inputs[n] for n in HISTORIES}, stage),
        )

    table = getattr(layer.encoder, "event_table", None)
    frozen, count, before = {}, model.num_parameters, {}
    for stage in range(3):
        model.stage = stage
        if stage:
            capacity.reopen(model, "keep", before, seed=stage)
            open_histories(tower, stages, stage, seed=stage)
        assert [matters(name, None) for name in HISTORIES] == [
            number <= stage for number in range(3)
        ]
        if table is not None:
            closed = table.table_owner.numpy()[NUM_RESERVED:] == CLOSED
            assert closed.all(axis=1).tolist() == [n > stage for n in range(3)]
            assert not table.table.numpy()[NUM_RESERVED:][closed].any()
        for parameter in model.owned_parameters:  # training moves what is free
            noise = tf.random.stateless_normal(parameter.variable.shape, [stage, 5])
            own = (FREE, 0) if stage == 0 and parameter.role == "bias" else (FREE,)
            free = np.isin(parameter.owner.numpy(), own)
            parameter.variable.assign_add(tf.where(free, 0.1 * noise, 0.0))
        before = capacity.snapshot(model)
        if stage < 2:
            shares = capacity.Shares(0.3, 0.3, 0.4)
            capacity.prune(
                model, stage, CumulativePercentile(), shares, stages_left=2 - stage
            )
        else:
            capacity.take_over(model, stage)
        frozen[stage] = model.query_vectors(inputs, stage).numpy()
        for earlier, vectors in frozen.items():
            np.testing.assert_array_equal(model.query_vectors(inputs, earlier), vectors)
            assert [matters(name, earlier) for name in HISTORIES] == [
                number <= earlier for number in range(3)
            ]
    assert model.num_parameters == count
    for parameter in model.owned_parameters:
        assert set(np.unique(parameter.owner.numpy())) <= {0, 1, 2}, parameter.name
        if parameter.role == "bias":
            assert not parameter.owner.numpy().any()
    shares = [p.owner_shares() for p in model.owned_parameters if "/token_0" in p.name]
    assert set(shares[0]) == {0, 1, 2}  # every stage owns a part of it
