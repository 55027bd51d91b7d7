"""The configuration tree: what is refused, what survives a round trip."""

import pytest

from tfcsmf.config import Config, StageConfig, read_yaml
from tfcsmf.errors import ConfigError, TfcsmfError, nearest

TREE = {
    "seed": 5,
    "data": {"events": "log.parquet", "candidate_features": {"price": "numeric"}},
    "towers": {"hidden_units": [64, 32]},
    "cascade": {
        "objectives": ["view", "buy"],
        "stages": {"buy": {"tau": 0.0, "epochs": 3}},
    },
    "retrieval": {"weights": {"buy": -0.5}},
}


def test_defaults_are_valid_and_every_objective_has_a_stage():
    config = Config()
    assert config == Config.from_dict({})
    assert config.objective_weights() == [1.0] * len(config.cascade.objectives)
    for name in config.cascade.objectives:
        assert config.stage(name) == config.cascade.stage


@pytest.mark.parametrize("tree", [{}, TREE])
def test_yaml_round_trip(tree, tmp_path):
    config = Config.from_dict(tree)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(str(path)) == config
    # Plain YAML: no Python tags that a safe loader refuses.
    assert "!!" not in path.read_text()


def test_the_record_of_a_finished_run_is_ignored(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("seed: 4\nrun: {revision: abc}\n")
    assert Config.from_yaml(str(path)) == Config(seed=4)


def test_an_empty_file_means_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    assert Config.from_yaml(str(path)) == Config()


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("seed=7", "seed", 7),
        ("cascade.stage.learning_rate=1e-3", "cascade.stage.learning_rate", 0.001),
        ("cascade.stage.learning_rate=2.5E-4", "cascade.stage.learning_rate", 2.5e-4),
        ("towers.hidden_units=[32, 16]", "towers.hidden_units", (32, 16)),
        ("towers.hidden_units=[]", "towers.hidden_units", ()),
        ("loss.correct_sampling=false", "loss.correct_sampling", False),
        ("loss.margin.form=order", "loss.margin.form", "order"),
        ("cascade.stage.embedding_tau=null", "cascade.stage.embedding_tau", None),
        ("data.events=a=b.parquet", "data.events", "a=b.parquet"),
        ("data.columns.user_id=uid", "data.columns.user_id", "uid"),
    ],
)
def test_assignments(assignment, path, expected):
    value = Config.from_dict({}, [assignment])
    for key in path.split("."):
        value = getattr(value, key)
    assert value == expected
    assert type(value) is type(expected)


def test_assignments_win_over_the_tree_in_order_and_leave_it_alone():
    tree = {"towers": {"dimension": 16, "dropout": 0.1}}
    config = Config.from_dict(tree, ["towers.dimension=32", "towers.dimension=48"])
    assert (config.towers.dimension, config.towers.dropout) == (48, 0.1)
    assert tree == {"towers": {"dimension": 16, "dropout": 0.1}}


@pytest.mark.parametrize("assignment", ["seed", "=3", "a..b=1", "seed=[1"])
def test_malformed_assignments(assignment):
    with pytest.raises(ConfigError, match="--set"):
        Config.from_dict({}, [assignment])


def test_an_assignment_below_a_value():
    with pytest.raises(ConfigError, match="'seed' is a single value"):
        Config.from_dict({"seed": 1}, ["seed.x=2"])
    with pytest.raises(ConfigError, match="'towers.dimension' is a single value"):
        Config.from_dict({"towers": {"dimension": 8}}, ["towers.dimension.x=2"])


def test_a_blank_after_the_colon_may_be_left_out():
    config = Config.from_dict({}, ["retrieval.weights={click:2, conversion:-1e-1}"])
    assert config.objective_weights() == [1.0, 2.0, -0.1]
    config = Config.from_dict({}, ["cascade.stages={click:{epochs:7, tau: 1e-2}}"])
    assert config.stage("click") == StageConfig(epochs=7, tau=0.01)
    with pytest.raises(ConfigError, match="Received: 'clik'. Did you mean 'click'"):
        Config.from_dict({}, ["retrieval.weights={clik:2}"])


@pytest.mark.parametrize(
    ("tree", "key", "hint"),
    [
        ({"tower": {}}, "tower", "towers"),
        ({"towers": {"dimensions": 8}}, "towers.dimensions", "towers.dimension"),
        ({"dimension": 8}, "dimension", "towers.dimension"),
        ({"margin": {"form": "order"}}, "margin", "loss.margin"),
        ({"cascade": {"tau": 0.2}}, "cascade.tau", "cascade.stage.tau"),
        (
            {"loss": {"margin": {"strenght": 1}}},
            "loss.margin.strenght",
            "loss.margin.strength",
        ),
        (
            {"cascade": {"stages": {"click": {"learning_rat": 1}}}},
            "cascade.stages.click.learning_rat",
            "cascade.stages.click.learning_rate",
        ),
        (
            {"data": {"columns": {"userid": "u"}}},
            "data.columns.userid",
            "data.columns.user_id",
        ),
    ],
)
def test_unknown_keys_name_the_nearest(tree, key, hint):
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tree)
    expected = f"Unknown configuration key {key!r}. Did you mean {hint!r}?"
    assert str(caught.value) == expected


def test_an_unknown_key_unlike_any_lists_the_known_ones():
    known = "Known: loss.margin.form, loss.margin.strength, loss.margin.share"
    with pytest.raises(ConfigError, match=known):
        Config.from_dict({"loss": {"margin": {"zzzzzz": 1}}})


@pytest.mark.parametrize(
    "assignment",
    [
        "towers.dimension=0",
        "towers.dimension=large",
        "towers.dimension=3.5",
        "cascade.stage.tau=1.0",
        "cascade.stage.tau=-0.1",
        "cascade.stage.learning_rate=0",
        "cascade.stage.recovery_share=0",
        "simulator.click_rate=1",
        "loss.margin.form=cosine",
        "data.query_features={age: integer}",
    ],
)
def test_bad_values_name_the_key_and_what_was_received(assignment):
    path, _, value = assignment.partition("=")
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({}, [assignment])
    message = str(caught.value)
    assert message.startswith(f"Configuration '{path}")
    assert "Received: " in message
    assert value.strip("{}").split()[-1].removesuffix(".0") in message


def test_a_key_that_is_no_string():
    with pytest.raises(ConfigError):
        Config.from_dict({1: 2})


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"seed": -1, "towers": {"dimension": 0, "wat": 1}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert sum("Unknown configuration key 'towers.wat'" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        ([], "at least one"),
        (["a", " "], "none of them blank"),
        (["a", "a"], "distinct"),
    ],
)
def test_objectives_are_distinct_names(names, rule):
    with pytest.raises(ConfigError, match=rule):
        Config.from_dict({"cascade": {"objectives": names}})


def test_stage_overrides_change_the_named_fields_only():
    config = Config.from_dict(
        TREE, ["cascade.stage.epochs=9", "cascade.stage.batch_size=64"]
    )
    assert config.stage("view") == StageConfig(epochs=9, batch_size=64)
    assert config.stage("buy") == StageConfig(epochs=3, batch_size=64, tau=0.0)
    assert config.objective_weights() == [1.0, -0.5]


def test_a_bad_stage_override_is_found_when_the_tree_is_built():
    with pytest.raises(ConfigError, match=r"cascade\.stages\.click\.tau"):
        Config.from_dict({}, ["cascade.stages.click.tau=2"])


@pytest.mark.parametrize(
    "assignment", ["cascade.stages.clicks.tau=0.1", "retrieval.weights.clicks=2"]
)
def test_only_objectives_can_be_overridden(assignment):
    with pytest.raises(ConfigError, match="'clicks'. Did you mean 'click'"):
        Config.from_dict({}, [assignment])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "just words"])
def test_a_file_that_is_no_mapping(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="should"):
        read_yaml(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"should exist.*nowhere\.yaml"):
        Config.from_yaml(str(tmp_path / "nowhere.yaml"))


def test_the_tree_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().towers.dimension = 3  # type: ignore[misc]


def test_errors_share_a_base_and_suggestions_need_likeness():
    assert issubclass(ConfigError, TfcsmfError) and issubclass(ConfigError, ValueError)
    assert nearest("clik", ["view", "click"]) == " Did you mean 'click'?"
    assert nearest("zzz", ["view", "click"]) == ""
