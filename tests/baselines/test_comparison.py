"""Comparisons: what is stored, pooled, reported, and not done twice."""

import json

import numpy as np
import pytest
from system_contract import CONFIG

from tfcsmf.baselines import comparison, measured
from tfcsmf.baselines.comparison import Comparison
from tfcsmf.baselines.comparison_report import format_comparison
from tfcsmf.baselines.measured import Measured, Values
from tfcsmf.baselines.registry import chosen
from tfcsmf.baselines.system import Cost
from tfcsmf.config import Config
from tfcsmf.errors import CheckpointError, ConfigError, DataError
from tfcsmf.evaluation import mean_interval, metric_names, paired_difference
from tfcsmf.evaluation.bootstrap import pooled_interval
from tfcsmf.evaluation.protocols import PROTOCOLS

RULES = ["popularity", "item_knn"]


def test_one_measurement_per_user_is_the_plain_bootstrap():
    values = np.random.default_rng(0).random((50, 2))
    mean, interval = pooled_interval(values, np.ones(50), 200, seed=3)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(interval, mean_interval(values, 200, seed=3))


def test_measuring_the_same_users_again_does_not_narrow_the_interval():
    values = np.random.default_rng(0).random((50, 1))
    once = pooled_interval(values, np.ones(50), 200, seed=3)
    thrice = pooled_interval(3 * values, np.full(50, 3), 200, seed=3)
    np.testing.assert_allclose(once[0], thrice[0])
    np.testing.assert_allclose(once[1], thrice[1])


def test_users_are_told_by_id_whatever_their_order():
    one = Values(np.array(["a", "b", "c"]), np.array([[1.0], [2.0], [3.0]]))
    other = Values(np.array(["c", "a"]), np.array([[30.0], [10.0]]))
    pooled = measured.pool([one, other])
    assert pooled.sums.ravel().tolist() == [11.0, 2.0, 33.0]
    assert pooled.counts.tolist() == [2, 1, 2]
    assert pooled.by_seed.ravel().tolist() == [2.0, 20.0]
    mean, _ = pooled.interval(10, 0)
    assert mean[0] == pytest.approx((1 + 2 + 3 + 30 + 10) / 5)


def test_without_users_there_is_no_number():
    nothing = Values(np.zeros(0, np.str_), np.zeros((0, 1)))
    pooled = measured.pool([nothing])
    config = Config.from_dict({"evaluation": {"ks": [3]}}).evaluation
    assert set(measured.summary(pooled, config, 0).values()) == {None}


def made_up(seed, shift, objectives=("exposure", "click"), users=40):
    names = metric_names(CONFIG.evaluation.ks)
    parts = {}
    for protocol in PROTOCOLS:
        for objective in objectives:
            table = np.random.default_rng(seed).random((users, len(names))) / 2
            ids = np.array([f"u{number:02}" for number in range(users)])
            parts[protocol, objective] = Values(ids, table + shift)
    return Measured(Cost(1, 10, 8, 1, 2.0 + seed, 5), parts)


def test_what_is_saved_comes_back_and_half_of_it_does_not(tmp_path):
    path = tmp_path / "popularity" / "seed0"
    assert measured.load(path) is None
    measured.save(path, made_up(0, 0.0))
    back = measured.load(path)
    assert back.cost == made_up(0, 0.0).cost
    for part, values in made_up(0, 0.0).parts.items():
        np.testing.assert_array_equal(back.parts[part].users, values.users)
        np.testing.assert_array_equal(back.parts[part].table, values.table)
    path.with_suffix(".json").unlink()  # killed before it was complete
    assert measured.load(path) is None


@pytest.fixture
def reported(tmp_path):
    """A comparison of made-up results: union is .1 better, on seeds 0 and 1 of 3."""
    run = Comparison(CONFIG, tmp_path / "out", show_progress=False)
    for seed in range(3):
        measured.save(run._result("csmf", seed), made_up(seed, 0.0))
        if seed < 2:
            measured.save(run._result("union", seed), made_up(seed, 0.1))
    return run, run.report()


def test_differences_are_paired_and_over_common_seeds(reported):
    _, content = reported
    assert list(content["systems"]) == ["csmf", "union"]
    assert content["systems"]["csmf"]["seeds"] == [0, 1, 2]
    assert content["systems"]["csmf"]["training_seconds"] == pytest.approx(3.0)
    entry = content["protocols"]["unseen"]["click"]["union"]
    assert entry["difference_seeds"] == [0, 1]
    for result in entry["difference"].values():
        assert result["mean"] == pytest.approx(0.1)
        assert result["ci95"] == pytest.approx([0.1, 0.1])
    assert "difference" not in content["protocols"]["unseen"]["click"]["csmf"]


def test_with_one_seed_it_is_the_paired_difference(tmp_path):
    run = Comparison(CONFIG, tmp_path, show_progress=False)
    ours, theirs = made_up(5, 0.0), made_up(6, 0.05)
    measured.save(run._result("csmf", 0), theirs)
    measured.save(run._result("ple", 0), ours)
    entry = run.report()["protocols"]["standard"]["click"]["ple"]
    part = ("standard", "click")
    samples = CONFIG.evaluation.bootstrap_samples
    for column, name in enumerate(metric_names(CONFIG.evaluation.ks)):
        a, b = (m.parts[part].table[:, column] for m in (ours, theirs))
        mean, interval = paired_difference(a, b, samples, 0)
        assert entry["difference"][name]["mean"] == pytest.approx(mean)
        assert entry["difference"][name]["ci95"] == pytest.approx(list(interval))


def test_an_objective_without_test_users_is_reported_without_numbers(tmp_path):
    run = Comparison(CONFIG, tmp_path, show_progress=False)
    for name in ("csmf", "mmoe"):
        full, empty = made_up(0, 0.0), made_up(0, 0.0, users=0)
        parts = {
            part: (empty if part[1] == "click" else full).parts[part]
            for part in full.parts
        }
        measured.save(run._result(name, 0), Measured(full.cost, parts))
    entry = run.report()["protocols"]["unseen"]["click"]["mmoe"]
    assert entry["users"] == 0
    assert set(entry["metrics"].values()) == {None}
    assert set(entry["difference"].values()) == {None}


def test_the_report_is_written_for_programs_and_for_people(reported):
    run, content = reported
    folder = run.path / "report"
    assert json.loads((folder / "comparison.json").read_text()) == content
    assert (folder / "comparison.png").stat().st_size > 10_000
    text = (folder / "comparison.txt").read_text()
    assert text == format_comparison(content)
    assert "+0.1000 (+0.1000 to +0.1000)*" in text
    assert "click, unseen protocol, 40 users" in text


def test_a_finished_result_is_not_repeated(tmp_path, monkeypatch):
    first = Comparison(CONFIG, tmp_path, show_progress=False).run(RULES, [0, 1])
    assert list(first["systems"]) == RULES

    def refuse(*_):
        raise AssertionError("done twice")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "prepare", refuse)
        patch.setattr(comparison, "make_system", refuse)
        again = Comparison(CONFIG, tmp_path, show_progress=False)
        assert again.run(RULES, [0, 1]) == first
    # Others join what is there.
    more = Comparison(CONFIG, tmp_path, show_progress=False).run(["seen_first"], [0])
    assert set(more["systems"]) == {*RULES, "seen_first"}
    assert more["systems"]["seen_first"]["seeds"] == [0]


def test_seeds_measure_different_users_and_are_reported_apart(tmp_path):
    content = Comparison(CONFIG, tmp_path, show_progress=False).run(
        ["popularity"], [0, 1]
    )
    entry = content["protocols"]["standard"]["click"]["popularity"]
    recall = entry["metrics"]["recall@10"]
    assert len(recall["seeds"]) == 2 and recall["seeds"][0] != recall["seeds"][1]
    assert min(recall["seeds"]) <= recall["mean"] <= max(recall["seeds"])


def test_validation_queries_are_measured_apart(tmp_path, log):
    run = Comparison(CONFIG, tmp_path, "validation", show_progress=False)
    content = run.run(["popularity", "seen_first"], [0])
    assert content["on"] == "validation"
    assert (tmp_path / "report" / "comparison_validation.json").is_file()
    assert not (tmp_path / "report" / "comparison.json").exists()
    users = content["protocols"]["standard"]["click"]["popularity"]["users"]
    assert 0 < users <= len(log.validation["click"].users)
    assert not (tmp_path / "results" / "test").exists()


def test_another_configuration_or_run_is_refused(tmp_path):
    Comparison(CONFIG, tmp_path, show_progress=False).run(["popularity"], [0])
    other = Config.from_dict(CONFIG.to_dict(), ["towers.dimension=9"])
    with pytest.raises(CheckpointError, match=r"towers\.dimension: 8 before, 9 now"):
        Comparison(other, tmp_path, show_progress=False)
    # The seed is given to `run`, not by the configuration.
    seeded = Config.from_dict(CONFIG.to_dict(), ["seed=5"])
    Comparison(seeded, tmp_path, show_progress=False)
    (tmp_path / "config.yaml").write_text("run: {status: finished}\n")
    with pytest.raises(CheckpointError, match="another run"):
        Comparison(CONFIG, tmp_path, show_progress=False)


def test_a_log_that_is_refused_leaves_nothing(tmp_path):
    missing = str(tmp_path / "missing.parquet")
    config = Config.from_dict(CONFIG.to_dict(), [f"data.events={missing}"])
    run = Comparison(config, tmp_path / "out", show_progress=False)
    with pytest.raises(DataError, match="that exists"):
        run.run(["popularity"], [0])
    assert not (tmp_path / "out").exists()


def test_another_log_is_refused(tmp_path):
    run = Comparison(CONFIG, tmp_path, show_progress=False)
    run.run(["popularity"], [0])
    path = tmp_path / "runs" / "log_seed0.json"
    path.write_text(path.read_text().replace('"examples"', '"exemples"'))
    with pytest.raises(CheckpointError, match="the log it began with"):
        run.run(["seen_first"], [0])


def test_names_are_checked_before_anything_is_trained(tmp_path):
    run = Comparison(CONFIG, tmp_path, show_progress=False)
    with pytest.raises(ConfigError, match="Did you mean 'seen_first'"):
        run.run(["popularity", "seen_firs"], [0])
    with pytest.raises(ConfigError, match="systems and seeds"):
        run.run(["popularity"], [])
    assert not (tmp_path / "results").exists()


def test_which_systems_are_chosen():
    assert chosen(["union", "csmf", "union"], None) == ["union", "csmf"]
    assert chosen(None, [])[:2] == ["csmf", "criterion_fixed_share"]
    assert "csmf" in chosen(None, None) and "tau_0.1" not in chosen(None, None)
