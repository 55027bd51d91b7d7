"""A cascade whose query tower has a sequence encoder, trained, killed and resumed."""

import math

import numpy as np
import pytest

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.training_state import model_arrays
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.towers import CLOSED, FREE

TINY = {
    "simulator": {"users": 40, "items": 30, "exposures_per_user": 15},
    "towers": {
        "dimension": 6,
        "embedding_dimension": 6,
        "feature_dimension": 4,
        "hidden_units": [8],
        "query_encoder": "heterrec",
    },
    "sequence": {"length": 6, "width": 4, "feed_forward": 6, "item_layers": 1},
    "cascade": {
        "objectives": ["exposure", "click"],
        "reserve": True,
        "stage": {"epochs": 1, "batch_size": 32, "recovery_epochs": 1},
        "checkpoint_every": 2,
    },
    "evaluation": {"validation_k": 5},
}


def make_trainer(directory, log=None):
    config = Config.from_dict(TINY)
    log = log or prepare(config)
    model = build_model(config, log)
    trainer = CascadeTrainer(config, log, model, directory, show_progress=False)
    trainer.pace.share = math.inf  # at every step it may, however long that takes
    return trainer


class Killed(Exception):
    pass


@pytest.mark.slow  # a minute, most of it tracing
@pytest.mark.timeout(600)
def test_a_killed_cascade_with_an_encoder_ends_like_one_that_was_not(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    count = whole.model.num_parameters
    started = {p.name: p.variable.numpy() for p in whole.model.owned_parameters}
    whole.train()
    assert whole.frozen.num_stages == 2 and whole.frozen.max_abs_change() == 0.0
    assert whole.model.num_parameters == count
    for parameter in whole.model.owned_parameters:
        owner = parameter.owner.numpy()
        assert not (owner == CLOSED).any(), parameter.name
        assert set(np.unique(owner)) <= {0, 1, FREE}, parameter.name
        if "/encoder/" in parameter.name and parameter.role == "kernel":
            moved = parameter.variable.numpy() != started[parameter.name]
            assert moved[owner == 0].any() and moved[owner == 1].any(), parameter.name

    first = make_trainer(tmp_path / "killed", whole.log)
    original = first.store.save

    def dying(state, arrays):
        original(state, arrays)
        if state["stage"] == 1 and state["phase"] == "train" and state["step"] > 1:
            raise Killed

    first.store.save = dying
    with pytest.raises(Killed):
        first.train()
    second = make_trainer(tmp_path / "killed", whole.log)
    assert second.resume() and second.progress.stage == 1
    assert second.model.query_tower.sequence.history_owner.numpy().tolist() == [0, 1]
    second.train()
    expected = model_arrays(whole.model)
    assert "history_owner" in expected
    for name, value in model_arrays(second.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
