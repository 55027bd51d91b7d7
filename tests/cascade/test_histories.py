"""Histories open with their stage, and earlier passes never see them."""

from dataclasses import replace

import numpy as np
import pytest

from tfcsmf.cascade import capacity
from tfcsmf.cascade.dimensions import rotate_free_dimensions
from tfcsmf.cascade.histories import (
    close_histories,
    lend_histories,
    open_histories,
    opening_stages,
)
from tfcsmf.cascade.model import build_model, history_stages
from tfcsmf.cascade.pruning import CumulativePercentile
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.towers import CLOSED, FREE


def model_of(config, log, *assignments):
    config = Config.from_dict(config.to_dict(), assignments)
    return build_model(config, log), history_stages(config, log)


def test_opening_stages():
    objectives, events = ["view", "buy"], ["search", "buy", "view"]
    stages = opening_stages(objectives, events, "earlier")
    # Objectives first, in their order.
    assert list(stages.items()) == [("view", 0), ("buy", 1), ("search", 0)]
    assert set(opening_stages(objectives, events, "all").values()) == {0}


@pytest.mark.parametrize("hidden", ["[10]", "[]"])
def test_closed_weights_open_with_their_stage(tiny_config, tiny_log, hidden):
    model, stages = model_of(tiny_config, tiny_log, f"towers.hidden_units={hidden}")
    tower = model.query_tower
    seen, opened = (
        tower.history_columns(f"history_{event}") for event in ("exposure", "click")
    )
    assert stages == {"exposure": 0, "click": 1, "conversion": 2}
    assert opened.start == seen.stop
    kernels = tower.encoding_kernels()
    assert len(kernels) == (2 if hidden == "[10]" else 1)
    before = []
    for layer, first in kernels:
        owner, value = (v.numpy() for v in (layer.kernel_owner, layer.kernel))
        closed = first + seen.stop
        assert (owner[:closed] == FREE).all() and (owner[closed:] == CLOSED).all()
        assert not value[closed:].any()
        # What was closed is not only zeros because it was to begin with.
        assert value[first + seen.start : closed].any()
        before.append(value)

    open_histories(tower, stages, 1, seed=5)
    for (layer, first), old in zip(kernels, before, strict=True):
        owner, value = (v.numpy() for v in (layer.kernel_owner, layer.kernel))
        rows = slice(first + opened.start, first + opened.stop)
        assert (owner[rows] == FREE).all() and (owner[rows.stop :] == CLOSED).all()
        np.testing.assert_array_equal(value[: rows.start], old[: rows.start])
        if layer is tower.output_layer:
            copied = value[first + seen.start : first + seen.stop]
            np.testing.assert_array_equal(value[rows], copied)
        else:
            limit = np.sqrt(6 / sum(value.shape))
            drawn = np.abs(value[rows])
            assert drawn.all() and 0.9 * limit < drawn.max() <= limit

    values = [layer.kernel.numpy() for layer, _ in kernels]
    open_histories(tower, stages, 1, seed=6)  # opened once
    for (layer, _), value in zip(kernels, values, strict=True):
        np.testing.assert_array_equal(layer.kernel, value)


def test_a_later_history_counts_at_first_as_the_one_before(
    tiny_config, tiny_log, some_inputs
):
    """In a basis that was turned, and for objectives whose weights were pruned."""
    model, stages = model_of(tiny_config, tiny_log, "towers.hidden_units=[]")
    tower, (inputs, catalogue) = model.query_tower, some_inputs
    rotate_free_dimensions(
        model,
        model.query_vectors(inputs, 0, training=True).numpy(),
        model.candidate_vectors(catalogue, 0, training=True).numpy(),
    )
    shares = capacity.Shares(0.3, 0.3, 0.4)
    capacity.prune(model, 0, CumulativePercentile(), shares, stages_left=2)
    capacity.reopen(model, "reinitialize", None, seed=0)
    open_histories(tower, stages, 1, seed=0)
    lists = inputs["history_exposure"]
    empty = lists[:, :0]
    other = {name: v for name, v in inputs.items() if not name.startswith("history")}
    exposed = other | {"history_exposure": lists, "history_click": empty}
    clicked = other | {"history_exposure": empty, "history_click": lists}
    np.testing.assert_allclose(tower(clicked), tower(exposed), rtol=1e-5, atol=1e-6)
    assert np.abs(tower(clicked) - tower(other)).max() > 1e-3
    # The next one is a copy of the click's, not of the exposure's.
    click = tower.history_columns("history_click")
    kernel = tower.output_layer.kernel
    value = kernel.numpy()
    value[click] += 1
    kernel.assign(value)
    open_histories(tower, stages, 2, seed=0)
    opened = tower.history_columns("history_conversion")
    np.testing.assert_array_equal(kernel.numpy()[opened], value[click])


def test_lent_weights_are_learned_closed_and_where_their_stage_starts(
    tiny_config, tiny_log, some_inputs
):
    model, stages = model_of(tiny_config, tiny_log)
    tower, (inputs, _) = model.query_tower, some_inputs
    without = inputs | {"history_click": inputs["history_click"][:, :0]}
    unlent = [layer.kernel.numpy() for layer, _ in tower.encoding_kernels()]
    lend_histories(tower, stages, seed=3)
    for (layer, first), old in zip(tower.encoding_kernels(), unlent, strict=True):
        value, owner = (v.numpy() for v in (layer.kernel, layer.kernel_owner))
        click = tower.history_columns("history_click")
        assert (owner == FREE).all()
        np.testing.assert_array_equal(
            value[: first + click.start], old[: first + click.start]
        )
        assert value[first + click.start :].any(axis=1).all()
    learned = model.query_vectors(inputs, 0, training=True).numpy()
    assert (learned != model.query_vectors(without, 0, training=True).numpy()).any()

    close_histories(tower, stages, keep=True)
    values = [layer.kernel.numpy() for layer, _ in tower.encoding_kernels()]
    shares = capacity.Shares(0.3, 0.3, 0.4)
    before = capacity.snapshot(model)
    capacity.prune(model, 0, CumulativePercentile(), shares, stages_left=2)
    frozen = model.query_vectors(inputs, 0).numpy()
    np.testing.assert_array_equal(model.query_vectors(without, 0), frozen)
    capacity.reopen(model, "keep", before, seed=0)
    open_histories(tower, stages, 1, seed=5)
    for (layer, first), old in zip(tower.encoding_kernels(), values, strict=True):
        value, owner = (v.numpy() for v in (layer.kernel, layer.kernel_owner))
        for event, wanted in (("click", FREE), ("conversion", CLOSED)):
            columns = tower.history_columns(f"history_{event}")
            rows = slice(first + columns.start, first + columns.stop)
            np.testing.assert_array_equal(value[rows], old[rows])
            assert (owner[rows] == wanted).all()
    np.testing.assert_array_equal(model.query_vectors(inputs, 0), frozen)


def test_what_is_lent_takes_no_part_in_pruning(tiny_config, tiny_log):
    model, stages = model_of(tiny_config, tiny_log)
    other, _ = model_of(tiny_config, tiny_log)
    lend_histories(model.query_tower, stages, seed=3)
    close_histories(model.query_tower, stages, keep=True)
    shares = capacity.Shares(0.3, 0.3, 0.4)
    arguments = (CumulativePercentile(), shares, "unit", 2)
    lent = capacity.prune(model, 0, *arguments)
    assert lent == capacity.prune(other, 0, *arguments)
    for one, two in zip(model.owned_parameters, other.owned_parameters, strict=True):
        np.testing.assert_array_equal(one.owner, two.owner)


def test_without_an_earlier_history_the_output_starts_as_the_identity(
    tiny_config, tiny_log
):
    log = replace(tiny_log, history_events=("click",))
    model, stages = model_of(tiny_config, log)
    open_histories(model.query_tower, stages, 1, seed=0)
    tower = model.query_tower
    layer, first = tower.encoding_kernels()[-1]
    start = tower.history_start(8).numpy()
    np.testing.assert_array_equal(start[:6], np.eye(6, 8))  # of ids
    np.testing.assert_array_equal(layer.kernel.numpy()[first:][-len(start) :], start)


@pytest.mark.parametrize("hidden", ["[10]", "[]"])
def test_opening_moves_no_frozen_vector_and_closed_lists_reach_nothing(
    tiny_config, tiny_log, some_inputs, hidden
):
    model, stages = model_of(tiny_config, tiny_log, f"towers.hidden_units={hidden}")
    inputs, _ = some_inputs
    without = inputs | {"history_click": inputs["history_click"][:, :0]}

    def click_matters(stage, training):
        vectors = model.query_vectors(inputs, stage, training).numpy()
        return not np.array_equal(
            model.query_vectors(without, stage, training), vectors
        )

    assert not click_matters(0, training=True)
    shares = capacity.Shares(0.3, 0.3, 0.4)
    before = capacity.snapshot(model)
    capacity.prune(model, 0, CumulativePercentile(), shares, stages_left=2)
    frozen = model.query_vectors(inputs, 0).numpy()
    capacity.reopen(model, "keep", before, seed=0)
    assert not click_matters(1, training=True)
    open_histories(model.query_tower, stages, 1, seed=0)
    assert click_matters(1, training=True)
    assert not click_matters(0, training=False)
    np.testing.assert_array_equal(model.query_vectors(inputs, 0), frozen)


def test_a_history_that_is_not_given_is_empty(tiny_config, tiny_log, some_inputs):
    model, _ = model_of(tiny_config, tiny_log, "cascade.history_access=all")
    inputs, _ = some_inputs
    empty = inputs["history_click"][:, :0]
    given = {name: value for name, value in inputs.items() if name != "history_click"}
    expected = model.query_tower(inputs | {"history_click": empty})
    np.testing.assert_array_equal(model.query_tower(given), expected)


def test_units_freed_whole_are_drawn_anew_beside_closed_weights(tiny_config, tiny_log):
    model, _ = model_of(tiny_config, tiny_log)
    layer = model.query_tower.hidden[0]
    owner = layer.kernel_owner.numpy()
    owner[:, 1:] = np.where(owner[:, 1:] == FREE, 0, owner[:, 1:])
    layer.kernel_owner.assign(owner)
    value = layer.kernel.numpy()
    value[:, 0] = 0
    layer.kernel.assign(value)
    capacity.reopen(model, "zero", None, seed=0)
    closed = owner[:, 0] == CLOSED
    assert layer.kernel.numpy()[~closed, 0].all()
    assert not layer.kernel.numpy()[closed].any()


def test_passes_see_the_histories_of_their_event_and_those_before(
    tiny_config, tiny_log, some_inputs, tmp_path
):
    tree = tiny_config.to_dict()
    config = Config.from_dict(tree, ["cascade.stage.epochs=1"])
    model = build_model(config, tiny_log)
    trainer = CascadeTrainer(config, tiny_log, model, tmp_path, show_progress=False)
    trainer.train()
    assert trainer.frozen.max_abs_change() == 0.0
    assert not any(
        np.isin(p.owner.numpy(), (CLOSED, FREE)).any() for p in model.owned_parameters
    )
    inputs, _ = some_inputs
    for stage in range(3):
        vectors = model.query_vectors(inputs, stage).numpy()
        for event, first in history_stages(config, tiny_log).items():
            name = f"history_{event}"
            other = model.query_vectors(inputs | {name: inputs[name][:, :0]}, stage)
            assert np.array_equal(other, vectors) == (first > stage), (event, stage)
