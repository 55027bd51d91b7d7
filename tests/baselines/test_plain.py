"""Networks for one objective: their logs, their configuration, what they start from."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from system_contract import CONFIG

from tfcsmf.baselines.cascaded import with_assignments
from tfcsmf.baselines.plain import own_history, plain_config, plain_log
from tfcsmf.baselines.registry import make_system
from tfcsmf.cascade.capacity import snapshot
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepare import prepare


def test_a_plain_configuration_keeps_its_own_settings_only():
    config = Config.from_dict(
        CONFIG.to_dict(),
        [
            "cascade.stages={click: {epochs: 7}, exposure: {epochs: 8}}",
            "retrieval.weights={click: 2}",
            "cascade.reserve=true",
        ],
    )
    click = plain_config(config, "click")
    assert click.cascade.objectives == ("click",)
    assert (click.stage("click").epochs, click.cascade.reserve) == (7, False)
    assert plain_config(config, "exposure").retrieval.weights == {}
    assert click.towers == config.towers


def test_an_own_history_is_the_same_list_without_the_others(log):
    own = own_history(plain_log(log, "click"), "click")
    assert own.history_events == ("click",)
    assert list(own.test_histories.lists) == ["click"]
    column = log.history_events.index("click")
    for part, whole in (
        (own.train["click"], log.train["click"]),
        (own.validation["click"], log.validation["click"]),
        (own.test["click"], log.test["click"]),
    ):
        np.testing.assert_array_equal(part.history_end, whole.history_end[:, [column]])


def test_no_history_of_its_own_is_none(log):
    from dataclasses import replace

    config = plain_log(log, "click")
    other = replace(config, history_events=("exposure", "conversion"))
    assert own_history(other, "click").history_events == ()
    assert own_history(other, "click").train["click"].history_end.shape[1] == 0


@pytest.mark.parametrize(("objective", "shown"), [("view", 0), ("buy", 24)])
def test_without_times_a_network_sees_no_target_in_later_histories(
    tmp_path, objective, shown
):
    """What one is asked to view is not given away by having been bought."""
    pairs = [(f"u{u}", f"i{(u + n) % 8}") for u in range(8) for n in range(3)]
    events = [(*pair, event, "train") for event in ("view", "buy") for pair in pairs]
    path = tmp_path / "events.parquet"
    names = ["user_id", "item_id", "event", "split"]
    pl.DataFrame(events, schema=names, orient="row").write_parquet(path)
    changes = [f"data.events={path}", "cascade.objectives=[view, buy]"]
    log = prepare(Config.from_dict({}, [*changes, "data.validation_share=0"]))
    settings = BatchSettings(64, 0, 0, 6, 0, target_share=1.0, visible_share=1.0)
    batches = StageBatches(plain_log(log, objective), objective, settings)
    batch = next(iter(batches.dataset(1.0, 0, 0, 1)))
    rows, columns = batch["positives"].numpy().T
    targets = tf.gather(batch["candidate"]["item_id"], columns).numpy()
    other = "buy" if objective == "view" else "view"
    later = batch["query"][f"history_{other}"].numpy()
    seen = [item in later[row] for row, item in zip(rows, targets, strict=True)]
    assert (len(seen), sum(seen)) == (24, shown)


def test_finetuning_starts_each_stage_from_the_last(log, tmp_path, monkeypatch):
    started, ended = [], []
    train = CascadeTrainer.train

    def watching(self):
        started.append(snapshot(self.model))
        done = train(self)
        ended.append(snapshot(self.model))
        return done

    monkeypatch.setattr(CascadeTrainer, "train", watching)
    config = Config.from_dict(CONFIG.to_dict(), ["cascade.stage.epochs=1"])
    make_system("finetune", config).fit(log, tmp_path)
    assert len(started) == 2
    moved = 0
    for name, value in ended[0].items():
        np.testing.assert_array_equal(started[1][name], value, err_msg=name)
        moved += np.abs(ended[1][name] - value).max() > 0
    assert moved == len(ended[0])  # nothing is frozen


@pytest.mark.parametrize("field", ["tau", "freed"])
def test_an_ablation_wins_over_settings_of_single_stages(field):
    value = {"tau": 0.3, "freed": "zero"}[field]
    stages = "cascade.stages={click: {tau: 0.4, freed: keep, epochs: 9}}"
    config = Config.from_dict(CONFIG.to_dict(), [stages])
    varied = with_assignments(config, [f"cascade.stage.{field}={value}"])
    assert getattr(varied.stage("click"), field) == value
    assert varied.stage("click").epochs == 9
