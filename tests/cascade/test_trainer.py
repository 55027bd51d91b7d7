"""The stage loop end to end on a tiny simulated log."""

import math

import numpy as np
import pytest

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.training_state import model_arrays
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.errors import ConfigError
from tfcsmf.towers import FREE

TINY = {
    "simulator": {"users": 60, "items": 40, "exposures_per_user": 20},
    "towers": {
        "dimension": 8,
        "embedding_dimension": 8,
        "feature_dimension": 4,
        "hidden_units": [16],
    },
    "loss": {"uniform_negatives": 16},
    "cascade": {
        "objectives": ["exposure", "click", "conversion"],
        "stage": {"epochs": 2, "batch_size": 64, "recovery_share": 0.5},
        "checkpoint_every": 3,
    },
    "evaluation": {"validation_k": 5},
}


def _config(*assignments):
    return Config.from_dict(TINY, assignments)


def _trainer(config, directory, log=None, **options):
    log = log or prepare(config)
    model = build_model(config, log)
    trainer = CascadeTrainer(
        config, log, model, directory, show_progress=False, **options
    )
    trainer.pace.share = math.inf  # at every step it may, however long that takes
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: the trainer and the log."""
    config = _config()
    trainer = _trainer(config, tmp_path_factory.mktemp("run"))
    trainer.train()
    return trainer


def test_every_stage_is_reported_in_order(finished):
    reports = finished.progress.finished
    assert [report["name"] for report in reports] == list(finished.log.objectives)
    for report in reports:
        assert report["seconds"] > 0
        assert report["examples"] == len(finished.log.train[report["name"]].pairs)
        assert report["examples_seen"] >= report["epochs"]
        assert 1 <= report["best_epoch"] <= report["epochs"] == 2
    assert max(reports[0]["freed_share"].values()) > 0.2
    assert set(reports[-1]["freed_share"].values()) == {0.0}


def test_frozen_scores_never_move_and_nothing_is_left_free(finished):
    assert finished.frozen.num_stages == 3
    assert finished.frozen.max_abs_change() == 0.0
    assert sum(finished.model.block_sizes(3)) == finished.model.dimension
    assert min(finished.model.block_sizes(3)) >= 1
    for parameter in finished.model.owned_parameters:
        assert not np.any(parameter.owner.numpy() == FREE)


def test_the_frozen_check_notices_a_change(finished):
    """Otherwise 0.0 would prove nothing."""
    kernel = finished.model.query_tower.output_layer
    before = kernel.kernel.numpy()
    owned = kernel.kernel_owner.numpy() == 0
    try:
        kernel.kernel.assign(np.where(owned, before + 1e-3, before))
        assert finished.frozen.max_abs_change() > 0.0
    finally:
        kernel.kernel.assign(before)


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "phase", "first_step"),
    [
        (1, "recovery", 1),
        # By default test_kills.py meets these, in real processes.
        pytest.param(
            0, "train", 3, marks=pytest.mark.slow
        ),  # in the middle of an epoch
        pytest.param(0, "recovery", 0, marks=pytest.mark.slow),  # after pruning
        pytest.param(2, "train", 0, marks=pytest.mark.slow),  # a stage was frozen
    ],
)
def test_a_killed_run_resumes_to_the_same_parameters(
    tmp_path, finished, stage, phase, first_step
):
    """Killed right after some checkpoint, wherever in the cascade that is."""
    first = _trainer(finished.config, tmp_path, finished.log)
    original = first.store.save

    def dying(state, arrays):
        original(state, arrays)
        place = (state["stage"], state["phase"])
        if place == (stage, phase) and state["step"] >= first_step:
            raise _Killed

    first.store.save = dying
    with pytest.raises(_Killed):
        first.train()
    second = _trainer(finished.config, tmp_path, finished.log)
    assert second.resume()
    second.train()
    expected = model_arrays(finished.model)
    for name, value in model_arrays(second.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for ours, theirs in zip(
        second.progress.finished, finished.progress.finished, strict=True
    ):
        assert ours["best_validation"] == theirs["best_validation"]
        assert ours["freed_share"] == theirs["freed_share"]
    assert second.progress.curves == finished.progress.curves


@pytest.mark.parametrize(
    "names",
    [
        ["exposure"],
        pytest.param(
            ["exposure", "click", "conversion", "repeat"], marks=pytest.mark.slow
        ),
    ],
)
def test_any_number_of_objectives(tmp_path, names):
    config = _config(f"cascade.objectives={names}", "cascade.stage.epochs=1")
    trainer = _trainer(config, tmp_path)
    trainer.train()
    assert [r["name"] for r in trainer.progress.finished] == names
    assert trainer.frozen.max_abs_change() == 0.0
    assert min(trainer.model.block_sizes(len(names))) >= 1


@pytest.mark.parametrize(
    "assignments",
    [
        [
            "cascade.criterion=fisher",
            "cascade.stage.optimizer=adagrad",
            "cascade.stage.weight_decay=0.1",
            "loss.margin.form=order",
            "loss.hard_negatives=8",
        ],
        [
            "cascade.criterion=magnitude",
            "towers.granularity=unit",
            "towers.embedding_ownership=columns",
            "cascade.stage.freed=reinitialize",
        ],
        [
            "cascade.criterion=random",
            "cascade.stage.freed=keep",
            "data.validation_users=0",
            "loss.uniform_negatives=0",
        ],
        [
            "towers.embedding_ownership=frozen",
            "cascade.blocks=disjoint",
            "towers.dropout=0.2",
            "cascade.stage.recovery_epochs=0",
        ],
    ],
    ids=lambda assignments: " ".join(assignments),
)
def test_every_option_keeps_frozen_scores(tmp_path, assignments):
    objectives = "cascade.objectives=[exposure, click]"
    config = _config("cascade.stage.epochs=1", objectives, *assignments)
    trainer = _trainer(config, tmp_path)
    trainer.train()
    assert trainer.frozen.max_abs_change() == 0.0
    assert len(trainer.progress.finished) == 2


def test_too_few_dimensions_say_so_before_training():
    with pytest.raises(ConfigError, match="at least 3"):
        _config("towers.dimension=2")
    with pytest.raises(ConfigError, match="at least 4"):
        _config("towers.dimension=3", "cascade.reserve=true")


def test_a_checkpoint_holds_nothing_that_is_not_needed(tmp_path, finished):
    trainer = _trainer(finished.config, tmp_path, finished.log)
    original, seen = trainer.store.save, []

    def recording(state, arrays):
        groups = {name.partition("/")[0] for name in arrays}
        seen.append((state["stage"], state["phase"], state["step"], groups, state))
        return original(state, arrays)

    trainer.store.save = recording
    trainer.train()
    always = {"block_owner", "model", "owner"}
    assert seen[-1][3] == always | {"frozen"}
    for stage, phase, step, groups, state in seen[:-1]:
        assert always <= groups
        evaluated = state["best"] is not None
        assert ("best" in groups) == (evaluated and step != state["best_step"])
        # Kept until the next stage has begun from it.
        pruned = phase == "recovery" or (stage > 0 and step == 0)
        assert ("before_pruning" in groups) == pruned
        assert ("optimizer" in groups) <= (step > 0)


def test_the_first_stage_teaches_the_later_ones_beside_its_own(finished, tmp_path):
    names, rows = finished.log.objectives, {}
    for weight in (0, 2):
        config = _config(f"cascade.later_weight={weight}")
        trainer = _trainer(config, tmp_path / str(weight), finished.log)
        assert trainer._teaches_later(0) == bool(weight)
        assert not trainer._teaches_later(1)
        for joint in {False, bool(weight)}:
            batches = trainer._batches(names[0], joint)
            assert set(batches.rows.labels) == ({0, 1, 2} if joint else {0})
            batch = next(iter(batches.dataset(1.0, 0, 0, 1)))
            assert ("history_click" in batch["query"]) == joint
            rows[weight] = batches.rows
    # Its own are the same, in this log whose clicks were all exposed.
    mine = rows[2].labels == 0
    np.testing.assert_array_equal(rows[2].users[mine], rows[0].users)


def test_users_of_many_events_have_few_rows(finished, tmp_path):
    rows = {}
    for most in (1000, 2):
        config = _config(f"data.rows_per_user={most}")
        trainer = _trainer(config, tmp_path / str(most), finished.log)
        rows[most] = len(trainer._batches("exposure").rows)
    assert rows[1000] > 5 * rows[2] and rows[2] <= 2 * 60
