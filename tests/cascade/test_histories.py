"""Histories open with their stage, and earlier passes never see them."""

import numpy as np
import pytest

from tfcsmf.cascade import capacity
from tfcsmf.cascade.histories import open_histories, opening_stages
from tfcsmf.cascade.model import build_model, history_stages
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.towers import CLOSED, FREE


def model_of(config, log, *assignments):
    config = Config.from_dict(config.to_dict(), assignments)
    return build_model(config, log), history_stages(config, log)


def test_opening_stages():
    objectives, events = ["view", "buy"], ["search", "buy", "view"]
    assert opening_stages(objectives, events, "earlier") == {
        "search": 0,
        "buy": 1,
        "view": 0,
    }
    assert set(opening_stages(objectives, events, "all").values()) == {0}


@pytest.mark.parametrize("hidden", ["[10]", "[]"])
def test_closed_weights_open_with_their_stage(tiny_config, tiny_log, hidden):
    model, stages = model_of(tiny_config, tiny_log, f"towers.hidden_units={hidden}")
    tower = model.query_tower
    owner, kernel = tower.input_layer.kernel_owner, tower.input_layer.kernel
    width = tower.history_columns("history_exposure").stop
    assert stages == {"exposure": 0, "click": 1, "conversion": 2}
    assert (owner.numpy()[:width] == FREE).all()
    assert (owner.numpy()[width:] == CLOSED).all()
    assert not kernel.numpy()[width:].any() and kernel.numpy()[:width].all()

    first = kernel.numpy()
    open_histories(tower, stages, 1, seed=5)
    opened = tower.history_columns("history_click")
    assert opened.start == width
    assert (owner.numpy()[opened] == FREE).all()
    assert (owner.numpy()[opened.stop :] == CLOSED).all()
    limit = np.sqrt(6 / sum(kernel.shape))
    drawn = kernel.numpy()[opened]
    assert drawn.all() and 0.9 * limit < np.abs(drawn).max() <= limit
    np.testing.assert_array_equal(kernel.numpy()[:width], first[:width])
    # Opened once.
    open_histories(tower, stages, 1, seed=6)
    np.testing.assert_array_equal(kernel.numpy()[opened], drawn)


def test_a_history_that_is_not_given_is_empty(tiny_config, tiny_log, some_inputs):
    model, _ = model_of(tiny_config, tiny_log, "cascade.history_access=all")
    inputs, _ = some_inputs
    empty = inputs["history_click"][:, :0]
    given = {name: value for name, value in inputs.items() if name != "history_click"}
    expected = model.query_tower(inputs | {"history_click": empty})
    np.testing.assert_array_equal(model.query_tower(given), expected)


def test_units_freed_whole_are_drawn_anew_beside_closed_weights(tiny_config, tiny_log):
    model, _ = model_of(tiny_config, tiny_log)
    layer = model.query_tower.input_layer
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
