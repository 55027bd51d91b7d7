"""Search spaces: what is read, what is refused and how, what a trial's settings do."""

import math

import pytest

from tfcsmf.config import Config
from tfcsmf.errors import ConfigError
from tfcsmf.tuning.space import DEFAULT_SPACE, Space

TREE = {
    "cascade.stage.tau": {"float": ["1e-2", 0.5], "log": True},  # as YAML 1.1 reads it
    "cascade.stages.click.learning_rate": {"float": [0.001, 0.002]},
    "towers.dimension": {"int": [32, 128], "step": 32},
    "towers.hidden_units": {"choice": [[64], [128, 64]]},
    "cascade.stage.embedding_tau": {"choice": [None, 0.2]},
}


def test_what_is_read_is_written_again():
    space = Space.from_dict(TREE, Config())
    again = Space.from_dict(space.to_dict(), Config())
    assert again == space
    assert space.to_dict()["cascade.stage.tau"] == {"float": [0.01, 0.5], "log": True}


def test_every_value_drawn_lies_in_its_range_and_fits_the_configuration():
    space = Space.from_dict(TREE, Config())
    hyperparameters = space.declare()
    seen = {path: set() for path in TREE}
    for seed in range(60):
        raw = {h.name: h.random_sample(seed) for h in hyperparameters.space}
        values = space.decode(raw)
        assert 0.01 <= values["cascade.stage.tau"] <= 0.5
        config = space.configure(Config(), values)
        assert config.cascade.stage.tau == values["cascade.stage.tau"]
        click = values["cascade.stages.click.learning_rate"]
        assert config.stage("click").learning_rate == click
        assert config.stage("exposure").learning_rate == 1e-3
        assert list(config.towers.hidden_units) == values["towers.hidden_units"]
        for path, value in values.items():
            seen[path].add(str(value))
            [parameter] = [p for p in space.parameters if p.path == path]
            assert 0.0 <= parameter.place(value) <= 1.0
    assert seen["towers.dimension"] == {"32", "64", "96", "128"}
    assert seen["cascade.stage.embedding_tau"] == {"None", "0.2"}
    # By the logarithm: half of the draws lie below the geometric mean.
    below = sum(float(v) < math.sqrt(0.01 * 0.5) for v in seen["cascade.stage.tau"])
    assert 15 <= below <= 45


def test_a_bound_on_epochs_holds_for_every_stage_and_raises_none():
    config = Config.from_dict({"cascade": {"stages": {"click": {"epochs": 3}}}})
    bounded = Space.configure(config, {"cascade.stage.tau": 0.3}, epochs=7)
    epochs = [bounded.stage(name).epochs for name in config.cascade.objectives]
    assert epochs == [7, 3, 7]
    assert bounded.stage("click").tau == 0.3


def test_current_values_are_those_of_the_configuration():
    config = Config.from_dict({"cascade": {"stages": {"click": {"tau": 0.25}}}})
    assert Space.current(config, "cascade.stages.click.tau") == 0.25
    assert Space.current(config, "cascade.stages.conversion.tau") == 0.1
    assert Space.current(config, "towers.hidden_units") == [128]


def test_the_default_space_surrounds_the_defaults():
    config = Config()
    for parameter in Space.from_dict(DEFAULT_SPACE, config).parameters:
        assert 0.0 <= parameter.place(Space.current(config, parameter.path)) <= 1.0


@pytest.mark.parametrize(
    ("path", "declared", "words"),
    [
        (
            "cascade.stage.tua",
            {"float": [0.1, 0.2]},
            "Did you mean 'cascade.stage.tau'",
        ),
        ("stage.patience", {"int": [1, 2]}, "cascade.stage.patience"),
        ("cascade.stages.clik.tau", {"float": [0.1, 0.2]}, "cascade.stages.click.tau"),
        ("cascade.stage", {"choice": [1]}, "which is none"),
        ("evaluation.validation_k", {"choice": [5, 9]}, "decides what is measured"),
        ("data.test_share", {"float": [0.1, 0.2]}, "decides what is measured"),
        ("seed", {"int": [0, 9]}, "decides what is measured"),
        ("retrieval.k", {"int": [1, 9]}, "does not change"),
        ("cascade.stage.tau", {"float": [0.3, 0.1]}, "low < high"),
        ("cascade.stage.tau", {"float": [0.1]}, "two numbers"),
        ("cascade.stage.tau", {"float": [0.0, 0.1], "log": True}, "begin above 0"),
        ("cascade.stage.tau", {"float": [0.1, 1.5]}, "less than 1"),
        ("cascade.stage.tau", {"float": [0.1, 0.2], "lgo": True}, "Did you mean 'log'"),
        ("cascade.stage.tau", {"float": [0.1, 0.2], "step": 0}, "step should be above"),
        ("cascade.stage.tau", 0.1, "give {float: [low, high]}"),
        ("cascade.stage.tau", {"float": [0.1, 0.2], "int": [1, 2]}, "give {float"),
        ("cascade.stage.epochs", {"int": [0.5, 2]}, "whole numbers"),
        ("cascade.stage.epochs", {"float": [1, 2.5]}, "valid integer"),
        ("cascade.stage.optimizer", {"choice": []}, "at least one value"),
        ("cascade.stage.optimizer", {"choice": ["adam", "adam"]}, "distinct"),
        ("cascade.stage.optimizer", {"choice": ["adam", "sgd"]}, "'sgd'"),
    ],
)
def test_mistakes_name_the_path_and_the_next_step(path, declared, words):
    with pytest.raises(ConfigError) as caught:
        Space.from_dict({path: declared}, Config())
    message = str(caught.value)
    assert words in message
    assert path in message or "Did you mean" in message


def test_an_empty_space_is_refused():
    with pytest.raises(ConfigError, match="at least one path"):
        Space.from_dict({}, Config())


def test_a_setting_that_every_stage_sets_itself_has_no_effect():
    stages = {name: {"tau": 0.1} for name in Config().cascade.objectives}
    config = Config.from_dict({"cascade": {"stages": stages}})
    with pytest.raises(ConfigError, match="for every objective"):
        Space.from_dict({"cascade.stage.tau": {"float": [0.1, 0.2]}}, config)


def test_a_sequence_encoder_is_searched_where_the_query_tower_has_one():
    declared = {"sequence.length": {"int": [10, 50]}}
    with pytest.raises(ConfigError, match="does not change"):
        Space.from_dict(declared, Config())
    config = Config.from_dict({"towers": {"query_encoder": "heterrec"}})
    assert len(Space.from_dict(declared, config).parameters) == 1
    alone = {"sequence.training.learning_rate": {"float": [0.001, 0.01]}}
    with pytest.raises(ConfigError, match="does not change"):
        Space.from_dict(alone, config)
