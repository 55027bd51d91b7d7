"""Ownership: a partition after every stage, and frozen objectives bit by bit."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade import capacity
from tfcsmf.cascade.capacity import Shares
from tfcsmf.cascade.pruning import CumulativePercentile, make_criterion
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import StageConfig
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.errors import CapacityError
from tfcsmf.towers import FREE

OWNERSHIPS = ("entries", "columns", "frozen")
CPP = CumulativePercentile()


def parameter(model, name):
    return next(p for p in model.owned_parameters if p.name == name)


def full_owner(p):
    return np.broadcast_to(p.owner.numpy(), p.variable.shape)


def start_over(model):
    for owner in (model.block_owner, *(p.owner for p in model.owned_parameters)):
        owner.assign(tf.fill(owner.shape, tf.constant(FREE, tf.int8)))


def pretend_to_train(model, rng):
    """Gives every `FREE` entry a new value, as training a stage does."""
    for p in model.owned_parameters:
        value = p.variable.numpy()
        drawn = rng.normal(size=value.shape).astype(np.float32)
        p.variable.assign(np.where(full_owner(p) == FREE, drawn, value))


def check_partition(model, stage, left):
    """Checks the rules of ownership after `stage` was pruned."""
    allowed = {*range(stage + 1), FREE}
    block = model.block_owner.numpy()
    assert set(block) <= allowed
    assert min(model.block_sizes(stage + 1)) >= 1
    assert (block == FREE).sum() >= left
    for p in model.owned_parameters:
        owner = full_owner(p)
        assert set(np.unique(owner)) <= allowed, p.name
        assert (p.variable.numpy()[owner == FREE] == 0).all(), p.name
        if p.role == "bias":
            assert (owner == 0).all()
        if p.name == "candidate/output/kernel":
            # A block of the candidate never changes again.
            np.testing.assert_array_equal(owner, np.broadcast_to(block, owner.shape))
        if p.name == "query/output/kernel":
            # Freed weights of a kept dimension may serve later objectives' queries.
            assert (owner >= block).all() and (owner[:, block == FREE] == FREE).all()


@pytest.mark.parametrize("ownership", OWNERSHIPS)
def test_ownership_is_a_partition(build, ownership):
    model = build(f"towers.embedding_ownership={ownership}")
    rng = np.random.default_rng(0)
    options = [
        *itertools.product(("weight", "unit"), ("cpp",), (1, 2, 3, 4)),
        *itertools.product(("weight", "unit"), ("magnitude", "random"), (3,)),
    ]
    for granularity, name, stages in options:
        start_over(model)
        criterion = make_criterion(name, 0)
        for stage in range(stages):
            pretend_to_train(model, rng)
            owners = {p.name: full_owner(p).copy() for p in model.owned_parameters}
            values = capacity.snapshot(model)
            left = stages - 1 - stage
            if not left:
                capacity.take_over(model, stage)
            else:
                shares = capacity.prune(
                    model, stage, criterion, Shares(0.3, 0.2, 0.4), granularity, left
                )
                check_partition(model, stage, left)
            for p in model.owned_parameters:
                earlier = owners[p.name] != FREE
                new_owner, new = full_owner(p), p.variable.numpy()
                np.testing.assert_array_equal(
                    new_owner[earlier], owners[p.name][earlier]
                )
                kept = new_owner != FREE
                np.testing.assert_array_equal(new[kept], values[p.name][kept])
                took_part = (~earlier).sum()
                if left and took_part:
                    share = (~kept).sum() / took_part
                    assert shares[p.name] == pytest.approx(share), p.name
        assert sum(model.block_sizes(stages)) == model.dimension
        assert not any((full_owner(p) == FREE).any() for p in model.owned_parameters)


def test_frozen_passes_use_the_raw_parameters_right_after_pruning(build, some_inputs):
    queries, catalogue = some_inputs
    model = build()
    capacity.prune(model, 0, CPP, Shares(0.3, 0.3, 0.3), "weight", 2)
    np.testing.assert_array_equal(
        model.query_vectors(queries, 0), model.query_vectors(queries, 0, True)
    )
    np.testing.assert_array_equal(
        model.candidate_vectors(catalogue, 0),
        model.candidate_vectors(catalogue, 0, True),
    )


def test_dimensions_are_chosen_by_the_columns_of_both_towers(build):
    model = build()
    query, candidate = (
        np.zeros(tower.output_layer.kernel.shape, np.float32)
        for tower in (model.query_tower, model.candidate_tower)
    )
    # Information of dimension j: 1..8, split unevenly between the towers.
    query[0] = [1, 0, 3, 1, 0, 6, 3.5, 1]
    candidate[3] = [0, -2, 0, -3, 5, 0, 3.5, -7]
    parameter(model, "query/output/kernel").variable.assign(query)
    parameter(model, "candidate/output/kernel").variable.assign(candidate)
    # Ascending 1 2 3 4 5 6 7 8 of 36: 1 + 2 + 3 + 4 = 10 <= .3 * 36 < 15.
    capacity.prune(model, 0, CPP, Shares(0.0, 0.0, 0.3), stages_left=2)
    assert (model.block_owner.numpy() == [FREE] * 4 + [0] * 4).all()
    assert model.block_sizes(2) == [4, 0]
    assert (
        parameter(model, "candidate/output/kernel").variable.numpy()[:, :4] == 0
    ).all()


def test_dimensions_are_chosen_by_what_they_move_if_that_is_given(build):
    model = build()
    spread = np.array([5.0, 1.0, 4.0, 1.0, 3.0, 9.0, 7.0, 2.0])
    # By columns all dimensions but the last two would go first.
    for name in ("query/output/kernel", "candidate/output/kernel"):
        kernel = parameter(model, name).variable
        kernel.assign(tf.ones_like(kernel) * [9.0, 9, 9, 9, 9, 9, 0.1, 0.1])
    capacity.prune(model, 0, CPP, Shares(0.0, 0.0, 0.26), dimensions=spread)
    # Ascending 1, 1, 2, 3, 4, ..: cumulative 1, 2, 4, 7, 11 of 32; .26 is 8.32.
    freed = np.flatnonzero(model.block_owner.numpy() == FREE)
    np.testing.assert_array_equal(freed, [1, 3, 4, 7])


@pytest.mark.parametrize(
    ("tau", "left", "kept"), [(0.0, 2, 6), (0.0, 7, 1), (0.99, 2, 1)]
)
def test_every_stage_gets_a_dimension_whatever_the_share(build, tau, left, kept):
    model = build()
    capacity.prune(model, 0, CPP, Shares(0.0, 0.0, tau), stages_left=left)
    assert model.block_sizes(1) == [kept]


def test_share_of_zero_frees_output_dimensions_only(build):
    model = build()
    shares = capacity.prune(model, 0, CPP, Shares(0.0, 0.0, 0.0), stages_left=2)
    assert {name: s for name, s in shares.items() if s} == {
        "query/output/kernel": 2 / 8,
        "candidate/output/kernel": 2 / 8,
    }


def test_shares_by_role(build):
    model = build()
    shares = capacity.prune(model, 0, CPP, Shares(0.5, 0.0, 0.0), stages_left=1)
    for p in model.owned_parameters:
        if p.role == "table" or p.role == "bias":
            assert shares[p.name] == 0.0
        if p.role == "kernel":
            assert shares[p.name] > 0.5
    # The query's output weights are freed inside kept dimensions too.
    assert shares["query/output/kernel"] > shares["candidate/output/kernel"] == 1 / 8


def test_units_are_freed_whole_by_the_norm_of_their_weights(build):
    model = build()
    kernel = parameter(model, "query/hidden_0/kernel")
    value = np.tile(
        np.arange(10, 0, -1, dtype=np.float32), [kernel.variable.shape[0], 1]
    )
    value[::2] *= -1
    kernel.variable.assign(value)
    capacity.prune(model, 0, CPP, Shares(0.3, 0.0, 0.0), "unit", 1)
    # Norms are proportional to 10..1: 1 + 2 + 3 + 4 + 5 = 15 <= .3 * 55 = 16.5.
    owner = kernel.owner.numpy()
    assert (owner[:, :5] == 0).all() and (owner[:, 5:] == FREE).all()


def test_columns_are_freed_by_their_norm(build):
    model = build("towers.embedding_ownership=columns")
    table = parameter(model, "candidate/item_id/table")
    table.variable.assign(tf.tile([[4.0, -1.0, 2.0, 6.0, -5.0, 3.0]], [43, 1]))
    capacity.prune(model, 0, CPP, Shares(0.0, 0.3, 0.0), stages_left=1)
    # 1 + 2 + 3 = 6 <= .3 * 21 = 6.3
    assert table.owner.numpy().tolist() == [[0, FREE, FREE, 0, 0, FREE]]
    assert table.variable.numpy()[0].tolist() == [4, 0, 0, 6, -5, 0]


def test_given_importance_decides_instead_of_the_magnitude(build):
    model = build()
    rng = np.random.default_rng(0)
    importance = {p.name: rng.random(p.variable.shape) for p in model.owned_parameters}
    capacity.prune(
        model, 0, make_criterion("fisher", 0), Shares(0.5, 0.5, 0.5), "weight", 1,
        importance,
    )  # fmt: skip
    name = "candidate/hidden_0/kernel"
    freed = parameter(model, name).owner.numpy() == FREE
    assert freed.mean() == pytest.approx(0.5, abs=0.01)
    assert importance[name][freed].max() < importance[name][~freed].min()
    # Tables row by row, so that rarely trained rows keep a vector.
    name = "query/user_id/table"
    freed = parameter(model, name).owner.numpy() == FREE
    assert (freed.sum(axis=1) == 3).all()
    largest_freed = np.where(freed, importance[name], -1).max(axis=1)
    smallest_kept = np.where(freed, 2, importance[name]).min(axis=1)
    assert (largest_freed < smallest_kept).all()
    free = model.block_owner.numpy() == FREE
    information = sum(
        importance[f"{tower}/output/kernel"].sum(axis=0)
        for tower in ("query", "candidate")
    )
    assert information[free].max() < information[~free].min()


def test_too_few_dimensions(build):
    model = build()
    with pytest.raises(CapacityError, match="Received: 8 free.*towers.dimension"):
        capacity.prune(model, 0, CPP, Shares(0.1, 0.1, 0.1), stages_left=8)
    capacity.take_over(model, 0)
    with pytest.raises(CapacityError, match="Received: 0 free"):
        capacity.prune(model, 1, CPP, Shares(0.1, 0.1, 0.1), stages_left=0)


@pytest.mark.parametrize("granularity", ["weight", "unit"])
@pytest.mark.parametrize("how", ["zero", "keep", "reinitialize"])
def test_reopen(build, how, granularity):
    model = build()
    before = capacity.snapshot(model)
    capacity.prune(model, 0, CPP, Shares(0.3, 0.3, 0.3), granularity, 2)
    pruned = capacity.snapshot(model)
    capacity.reopen(model, how, before, seed=5)
    free_dimensions = model.block_owner.numpy() == FREE
    for p in model.owned_parameters:
        value, free = p.variable.numpy(), full_owner(p) == FREE
        np.testing.assert_array_equal(value[~free], pruned[p.name][~free])
        if how == "keep":
            np.testing.assert_array_equal(value[free], before[p.name][free])
        elif how == "reinitialize":
            assert (value[free] != 0).all()
            if free.sum() > 100:  # drawn as the initializers do
                spread = before[p.name].std()
                if p.role == "output":  # which does not start with draws
                    spread = np.sqrt(2 / sum(value.shape))
                assert value[free].std() == pytest.approx(spread, rel=0.25)
        else:
            # Dimensions and units freed whole would stay dead at zero.
            whole = free.all(axis=0) if p.role == "kernel" else False
            fresh = free & (free_dimensions if p.role == "output" else whole)
            if granularity == "unit" and "hidden" in p.name and p.role == "kernel":
                assert fresh.any() and (fresh == free).all()
            assert (value[fresh] != 0).all() and (value[free & ~fresh] == 0).all()
    opened = capacity.snapshot(model)
    capacity.reopen(model, how, before, seed=5)
    again = capacity.snapshot(model)
    assert all((opened[name] == again[name]).all() for name in opened)


# Training for real.


def batches_of(log, objective):
    return StageBatches(log, objective, BatchSettings(32, 8, 0, 6, 0))


@pytest.fixture(scope="module")
def recorded(tiny_log):
    """Per stage: the probabilities, batches to train on and to recover on."""
    stages = []
    for objective in (*tiny_log.objectives, "click"):
        batches = batches_of(tiny_log, objective)
        parts = [list(batches.dataset(1.0, phase, 0, 3)) for phase in (0, 1)]
        stages.append((tf.constant(batches.probability), *parts))
    return stages


def train_stage(model, recorded, catalogue, stage, settings, how="zero", **options):
    """One stage as the trainer runs it, in a few coarse steps."""
    model.stage = stage
    model.sampling_probability, training, recovery = recorded[stage]
    if stage:
        model.frozen_candidates = model.all_blocks(catalogue, stage)
        capacity.reopen(model, how, options["before"], seed=stage)
    step = StageStep(model, settings)
    step.start("train", stage)
    losses = [float(step(batch)) for batch in training]
    before = capacity.snapshot(model)
    if left := options["left"]:
        granularity = options["granularity"]
        capacity.prune(model, stage, CPP, Shares(0.3, 0.3, 0.3), granularity, left)
    else:
        capacity.take_over(model, stage)
    step.start("recovery", stage)
    losses += [float(step(batch)) for batch in recovery]
    assert np.isfinite(losses).all()
    return before


def vectors(model, inputs, stage):
    queries, catalogue = inputs
    return (
        model.query_vectors(queries, stage).numpy(),
        model.candidate_vectors(catalogue, stage).numpy(),
    )


def settings_of(optimizer):
    return StageConfig(
        optimizer=optimizer,
        learning_rate=0.1,
        embedding_learning_rate=0.5,
        weight_decay=0.2,
    )


CASES = [
    # All ownerships with all ways to reopen; the other options take turns.
    (ownership, how, *rest)
    for (ownership, how), rest in zip(
        itertools.product(OWNERSHIPS, ("zero", "keep", "reinitialize")),
        itertools.cycle(
            [
                ("adam", "weight", "nested"),
                ("adagrad", "unit", "nested"),
                ("adam", "unit", "disjoint"),
                ("adagrad", "weight", "disjoint"),
            ]
        ),
        strict=False,
    )
]


@pytest.fixture
def eagerly():
    """Small steps cost less than tracing them; one case below is compiled."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def check_frozen(model, recorded, inputs, how, optimizer, granularity, stages=3):
    frozen, before = [], None
    for stage in range(stages):
        owners = {p.name: full_owner(p).copy() for p in model.owned_parameters}
        values = capacity.snapshot(model)
        left = stages - 1 - stage
        before = train_stage(
            model, recorded, inputs[1], stage, settings_of(optimizer), how,
            granularity=granularity, before=before, left=left,
        )  # fmt: skip
        for p in model.owned_parameters:
            earlier = owners[p.name] != FREE
            new = p.variable.numpy()
            np.testing.assert_array_equal(new[earlier], values[p.name][earlier])
        for past, (query, candidate) in enumerate(frozen):
            now = vectors(model, inputs, past)
            assert np.array_equal(now[0], query), (stage, past)
            assert np.array_equal(now[1], candidate), (stage, past)
        if left:
            check_partition(model, stage, left)
        frozen.append(vectors(model, inputs, stage))
    # Coarse steps may kill a later stage's few units, but never all of the first's.
    assert all(np.abs(first).max() > 0 for first in frozen[0])
    return frozen


@pytest.mark.parametrize(
    ("ownership", "how", "optimizer", "granularity", "blocks"), CASES
)
def test_frozen_objectives_are_bit_equal(
    build,
    recorded,
    some_inputs,
    eagerly,
    ownership,
    how,
    optimizer,
    granularity,
    blocks,
):
    model = build(
        f"towers.embedding_ownership={ownership}",
        f"cascade.blocks={blocks}",
        "towers.dropout=0.1",
    )
    check_frozen(model, recorded, some_inputs, how, optimizer, granularity)


@pytest.mark.slow  # the trainer's tests of every option compile their steps too
def test_frozen_objectives_are_bit_equal_with_compiled_steps(
    build, recorded, some_inputs
):
    check_frozen(build(), recorded, some_inputs, "keep", "adam", "weight", stages=2)


def test_capacity_kept_for_an_objective_appended_later(
    build, recorded, some_inputs, eagerly
):
    model = build()
    check_frozen(model, recorded, some_inputs, "zero", "adam", "weight", stages=4)
    assert len(model.block_sizes(4)) == 4 and min(model.block_sizes(4)) >= 1


@pytest.mark.parametrize("ownership", OWNERSHIPS)
def test_freed_dimensions_start_alive(build, tiny_log, some_inputs, ownership):
    model = build(f"towers.embedding_ownership={ownership}")
    capacity.prune(model, 0, CPP, Shares(0.3, 0.3, 0.3), "weight", 2)
    model.stage = 1
    model.frozen_candidates = model.all_blocks(some_inputs[1], 1)
    capacity.reopen(model, "zero", None, seed=0)
    batch = next(iter(batches_of(tiny_log, "click").dataset(1.0, 0, 0, 1)))
    kernels = [
        parameter(model, f"{tower}/output/kernel").variable
        for tower in ("query", "candidate")
    ]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch)
    free = model.block_owner.numpy() == FREE
    for gradient in tape.gradient(loss, kernels):
        assert (np.abs(gradient.numpy()[:, free]).max(axis=0) > 0).all()
