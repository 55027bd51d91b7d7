"""What a run says of its data has to be what was prepared."""

import pytest
from test_sharded import config_of

from tfcsmf.config import Config
from tfcsmf.data.sharded.settings import (
    check_settings,
    prepared_settings,
    with_prepared,
)
from tfcsmf.errors import ConfigError

TIMED = {"history_times": True, "query_encoder": "merged"}


@pytest.fixture
def settings():
    config = config_of("log", min_count=3, columns={"user_id": "who"})
    return prepared_settings(config)


def test_what_is_not_said_is_what_was_prepared(settings):
    tree = with_prepared({"towers": {"dimension": 8}}, settings, "folder")
    config = Config.from_dict(tree)
    assert config.data.prepared == "folder" and config.data.events == "log"
    assert config.data.min_count == 3 and config.data.columns.user_id == "who"
    assert config.cascade.objectives == ("view", "cart", "buy")
    assert config.towers.dimension == 8
    check_settings(settings, Config.from_dict(tree | {"towers": TIMED}), "folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.min_count=4", "data.min_count: 3 prepared, 4 now"),
        ("data.events=other", "data.events: 'log' prepared, 'other' now"),
        ("cascade.objectives=[view, buy]", "cascade.objectives"),
        ("cascade.later_weight=0", "later_weight > 0: True prepared, False now"),
        ("towers.history_times=false", "towers.history_times.*True prepared, False"),
    ],
)
def test_other_values_are_refused_by_name(settings, change, message):
    tree = with_prepared({"towers": TIMED}, settings, "out")
    config = Config.from_dict(tree, [change])
    with pytest.raises(ConfigError, match=f"(?s){message}.*pipelines/prepare.py"):
        check_settings(settings, config, "out")


@pytest.mark.parametrize(
    "change", ["seed=7", "data.history_length=3", "cascade.later_weight=5"]
)
def test_what_training_alone_uses_may_change(settings, change):
    tree = with_prepared({"towers": TIMED}, settings, "out")
    check_settings(settings, Config.from_dict(tree, [change]), "out")
