"""Every system passes the contract; those that add little code are marked slow."""

import math

import pytest
from system_contract import CONFIG, SystemContract, rankings

from tfcsmf.baselines.joint import JointTrainer
from tfcsmf.baselines.registry import ABLATIONS, SYSTEMS, make_system
from tfcsmf.cascade.checkpoints import CheckpointStore, SavePace
from tfcsmf.cascade.model import build_model
from tfcsmf.errors import ConfigError


class TestCsmf(SystemContract):
    name = "csmf"


@pytest.mark.slow
class TestUnion(SystemContract):
    name = "union"


class TestPle(SystemContract):
    name = "ple"


@pytest.mark.slow
class TestFinetune(SystemContract):
    name = "finetune"
    networks = index_queries = 2


class _Rule(SystemContract):
    networks = index_queries = dimension = 0


class TestPopularity(_Rule):
    name = "popularity"


class TestSeenFirst(_Rule):
    name = "seen_first"


class TestItemKnn(_Rule):
    name = "item_knn"


class TestItemKnnAll(_Rule):
    name = "item_knn_all"


@pytest.mark.slow
class TestPacknet(SystemContract):
    name = "packnet"


@pytest.mark.slow
class TestSeparate(SystemContract):
    name = "separate"
    networks = index_queries = 2


@pytest.mark.slow
class TestSeparateOwnHistory(SystemContract):
    name = "separate_own_history"
    networks = index_queries = 2


@pytest.mark.slow
class TestFinetuneLast(SystemContract):
    name = "finetune_last"


@pytest.mark.slow
class TestSharedBottom(SystemContract):
    name = "shared_bottom"


@pytest.mark.slow
class TestMmoe(SystemContract):
    name = "mmoe"


@pytest.mark.slow
class TestSharedBottomWide(SystemContract):
    name = "shared_bottom_wide"
    dimension = 16


@pytest.mark.slow
class TestMmoeWide(SystemContract):
    name = "mmoe_wide"
    dimension = 16


@pytest.mark.slow
class TestPleWide(SystemContract):
    name = "ple_wide"
    dimension = 16


def test_every_system_is_under_the_contract():
    tested = {
        value.name
        for value in globals().values()
        if isinstance(value, type) and issubclass(value, SystemContract)
    }
    assert tested - {""} == set(SYSTEMS)


class TestUnfitted:
    def test_it_says_so(self):
        for name in ("csmf", "popularity"):
            with pytest.raises(ConfigError, match="should be fitted"):
                make_system(name, CONFIG).ranker("click")

    def test_unknown_names_get_the_nearest(self):
        with pytest.raises(ConfigError, match="Did you mean 'shared_bottom'"):
            make_system("shared_botom", CONFIG)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_change_what_they_name_and_nothing_else(name):
    ours = make_system(name, CONFIG).config.to_dict()
    expected = CONFIG.to_dict()
    for assignment in ABLATIONS[name]:
        path, _, text = assignment.partition("=")
        *sections, key = path.split(".")
        here, there = ours, expected
        for section in sections:
            here, there = here[section], there[section]
        assert str(here[key]) == text or float(here[key]) == float(text)
        there[key] = here[key]
    assert ours == expected


def test_single_network_baselines_have_the_size_they_claim(log):
    plain = build_model(CONFIG, log).num_parameters
    union = make_system("union", CONFIG).build(log)
    assert union.num_parameters == plain
    shared = make_system("shared_bottom", CONFIG).build(log)
    # One more head, on the 10 activations and the encodings.
    head = (10 + shared.query_tower.input_width) * 8
    assert shared.num_parameters == plain + head
    for name in ("mmoe", "ple"):
        assert make_system(name, CONFIG).build(log).num_parameters > plain + head
        assert make_system(name, CONFIG).build(log).dimension == 8


class _Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_joint_training_continues_to_the_same_result(
    log, tmp_path, monkeypatch
):
    whole = make_system("shared_bottom", CONFIG)
    whole.fit(log, tmp_path / "whole")
    # Save whenever possible, and die after the first epoch.
    monkeypatch.setattr(SavePace, "affordable", lambda self: True)
    save = CheckpointStore.save

    def dying(self, state, arrays):
        save(self, state, arrays)
        if state["stage"] == 0:
            raise _Killed

    monkeypatch.setattr(CheckpointStore, "save", dying)
    with pytest.raises(_Killed):
        make_system("shared_bottom", CONFIG).fit(log, tmp_path / "killed")
    monkeypatch.setattr(CheckpointStore, "save", save)
    steps = []
    run_epoch = JointTrainer._run_epoch
    monkeypatch.setattr(
        JointTrainer,
        "_run_epoch",
        lambda self, *a: (steps.append(self.progress.step), run_epoch(self, *a))[1],
    )
    resumed = make_system("shared_bottom", CONFIG)
    resumed.fit(log, tmp_path / "killed")
    assert min(steps) > 0  # the first epoch was not repeated
    assert math.isfinite(resumed.cost().training_seconds)
    ours, theirs = rankings(resumed, log), rankings(whole, log)
    for objective in log.objectives:
        assert (ours[objective][0] == theirs[objective][0]).all()
