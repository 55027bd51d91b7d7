import json
from dataclasses import replace

import numpy as np
import pytest

from tfcsmf.config import EvaluationConfig
from tfcsmf.data.prepared import Csr, EvaluationSet
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation import (
    VectorRanker,
    apply_protocol,
    evaluate,
    evaluate_all,
    mean_recall,
    paired_difference,
    user_metrics,
)
from tfcsmf.evaluation import protocols as protocols_module
from tfcsmf.evaluation.protocols import evaluate_parts

CONFIG = EvaluationConfig(ks=(1, 2), bootstrap_samples=50)


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return Csr(offsets, np.array([i for row in rows for i in row], np.int32))


def queries(targets, seen, met):
    return EvaluationSet(
        users=np.arange(len(targets), dtype=np.int32),
        targets=csr(targets),
        history_end=np.zeros((len(targets), 0), np.int64),
        seen=csr(seen),
        met=csr(met),
    )


# Item p scores 10 - p for everyone: the ranking is 0, 1, 2, ... without the masked.
CANDIDATES = 10.0 - np.arange(6)[:, None]
THREE = queries(
    targets=[[1], [0, 3], [2]],
    seen=[[0], [], [2]],
    met=[[0], [0, 1, 2], [0, 2]],
)


def ranker():
    return VectorRanker(lambda objective, part: np.ones((3, 1)), CANDIDATES)


def test_standard_masks_seen_and_drops_targets_that_are_masked():
    got = apply_protocol(THREE, "standard")
    assert got.rows.tolist() == [0, 1]
    assert [got.targets.row(r).tolist() for r in (0, 1)] == [[1], [0, 3]]
    assert [got.exclude.row(r).tolist() for r in (0, 1)] == [[0], []]
    assert got.dropped_targets == 1


def test_unseen_masks_everything_met():
    got = apply_protocol(THREE, "unseen")
    assert got.rows.tolist() == [0, 1]
    assert [got.targets.row(r).tolist() for r in (0, 1)] == [[1], [3]]
    assert [got.exclude.row(r).tolist() for r in (0, 1)] == [[0], [0, 1, 2]]
    assert got.dropped_targets == 2


def test_hand_computed_results():
    standard = evaluate(ranker(), THREE, "buy", "standard", CONFIG, seed=0)
    # User 0 sees 1, 2; user 1 sees 0, 1; targets are [1] and [0, 3].
    assert standard["users"] == 2
    assert standard["dropped_targets"] == 1
    assert standard["recall@1"] == (1 + 1 / 2) / 2
    assert standard["hit_rate@2"] == 1.0
    assert standard["ndcg@2"] == pytest.approx((1 + 1 / (1 + 1 / np.log2(3))) / 2)
    unseen = evaluate(ranker(), THREE, "buy", "unseen", CONFIG, seed=0)
    assert unseen["recall@1"] == 1.0  # 3 leads once 0, 1 and 2 are masked
    assert mean_recall(ranker(), THREE, "buy", 1) == 1.0


def test_contract_keys_and_intervals():
    result = evaluate(ranker(), THREE, "buy", "standard", CONFIG, seed=0)
    names = {f"{m}@{k}" for m in ("recall", "hit_rate", "ndcg") for k in (1, 2)}
    expected = names | {f"{n}_ci95" for n in names} | {"users", "dropped_targets"}
    assert set(result) == expected
    for name in names:
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] <= high
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result == evaluate(ranker(), THREE, "buy", "standard", CONFIG, seed=0)


def test_no_queries_gives_nulls():
    empty = queries([], [], [])
    result = evaluate(
        VectorRanker(lambda objective, part: np.ones((0, 1)), CANDIDATES),
        empty, "buy", "unseen", CONFIG, seed=0,
    )  # fmt: skip
    assert result["users"] == 0
    assert result["recall@1"] is None and result["ndcg@2_ci95"] is None
    assert "NaN" not in json.dumps(result)
    assert mean_recall(ranker(), empty, "buy", 2) is None


def test_users_whose_targets_are_all_masked_leave_no_queries():
    result = evaluate(
        ranker(), queries([[1]], [[]], [[1]]), "buy", "unseen", CONFIG, seed=0
    )
    assert (result["users"], result["dropped_targets"]) == (0, 1)


def test_queries_of_an_objective_are_encoded_once():
    asked = []

    def vectors(objective, part):
        asked.append(objective)
        return np.ones((len(part.users), 1))

    results = evaluate_all(
        VectorRanker(vectors, CANDIDATES), {"view": THREE, "buy": THREE}, CONFIG, 0
    )
    assert asked == ["view", "buy"]
    assert list(results) == ["standard", "unseen"]
    assert list(results["unseen"]) == ["view", "buy"]
    assert results["standard"]["buy"] == evaluate(
        ranker(), THREE, "buy", "standard", CONFIG, 0
    )


def test_many_users_are_measured_in_parts(monkeypatch):
    whole, _ = user_metrics(ranker(), THREE, "buy", "standard", (1, 2))
    monkeypatch.setattr(protocols_module, "_USERS_AT_ONCE", 1)
    parts, part_queries = user_metrics(ranker(), THREE, "buy", "standard", (1, 2))
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    difference, interval = paired_difference(
        whole["recall@1"], parts["recall@1"], 20, seed=0
    )
    assert (difference, interval) == (0.0, (0.0, 0.0))
    assert part_queries.rows.tolist() == [0, 1]


def test_parts_of_the_users_give_the_results_of_all():
    generator = np.random.default_rng(0)
    items = [generator.permutation(6)[:3].tolist() for _ in range(20)]
    targets, met = [row[:2] for row in items], [row[2:] for row in items]
    whole = queries(targets, met, met)

    def part(rows):
        chosen = queries(*([lists[r] for r in rows] for lists in (targets, met, met)))
        return replace(chosen, users=np.array(rows, np.int32))

    def systems(size):
        vectors = np.ones((size, 1))
        return {
            name: VectorRanker(lambda objective, asked: vectors, sign * CANDIDATES)
            for name, sign in (("up", 1), ("down", -1))
        }

    parts = [
        part([1, 4, 19]),
        part([]),
        part([r for r in range(19) if r not in (1, 4)]),
    ]
    found = evaluate_parts(
        ((systems(len(p.users)), {"buy": p}) for p in parts), CONFIG, seed=3
    )
    for name, system in systems(20).items():
        assert found[name] == evaluate_all(system, {"buy": whole}, CONFIG, seed=3)
    assert found["up"] != found["down"]


def test_errors():
    with pytest.raises(ConfigError, match="Did you mean 'unseen'"):
        apply_protocol(THREE, "unsen")
    wrong = VectorRanker(lambda objective, part: np.ones((2, 1)), CANDIDATES)
    with pytest.raises(ConfigError, match="one vector per query, 3"):
        evaluate(wrong, THREE, "buy", "standard", CONFIG, seed=0)
