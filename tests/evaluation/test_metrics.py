import math

import numpy as np
import pytest

from tfcsmf.data.prepared import Csr
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation.metrics import hits, metric_names, per_user_metrics


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return Csr(offsets, np.array([i for row in rows for i in row], np.int32))


def reference(ranked, targets, k):
    """One user in plain Python."""
    found = [i for i, item in enumerate(ranked[:k]) if item in targets and item >= 0]
    dcg = sum(1 / math.log2(i + 2) for i in found)
    ideal = sum(1 / math.log2(i + 2) for i in range(min(len(targets), k)))
    return len(found) / len(targets), float(bool(found)), dcg / ideal


def test_hand_computed():
    positions = np.array([[3, 1, 2, 0], [5, 6, -1, -1], [0, 1, 2, 3]], np.int32)
    values = per_user_metrics(positions, csr([[1, 0, 9], [7], [0]]), (1, 2, 4))
    assert values["recall@1"].tolist() == [0, 0, 1]
    assert values["recall@2"].tolist() == [1 / 3, 0, 1]
    assert values["recall@4"].tolist() == [2 / 3, 0, 1]
    assert values["hit_rate@2"].tolist() == [1, 0, 1]
    ideal2 = 1 + 1 / math.log2(3)
    ideal4 = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    np.testing.assert_allclose(values["ndcg@1"], [0, 0, 1])
    np.testing.assert_allclose(values["ndcg@2"], [1 / math.log2(3) / ideal2, 0, 1])
    np.testing.assert_allclose(
        values["ndcg@4"], [(1 / math.log2(3) + 1 / math.log2(5)) / ideal4, 0, 1]
    )


def test_equals_plain_python_on_random_lists():
    generator = np.random.default_rng(0)
    queries, size, width = 40, 30, 12
    positions = np.stack([generator.permutation(size)[:width] for _ in range(queries)])
    positions[generator.random(positions.shape) < 0.1] = -1
    targets = [
        generator.choice(size, generator.integers(1, 15), replace=False)
        for _ in range(queries)
    ]
    values = per_user_metrics(positions, csr(targets), (1, 5, 12))
    assert list(values) == metric_names((1, 5, 12))
    for k in (1, 5, 12):
        expected = [
            reference(row.tolist(), set(wanted.tolist()), k)
            for row, wanted in zip(positions, targets, strict=True)
        ]
        for column, name in enumerate(("recall", "hit_rate", "ndcg")):
            np.testing.assert_allclose(
                values[f"{name}@{k}"], [row[column] for row in expected]
            )


def test_perfect_and_hopeless_rankings():
    positions = np.tile(np.arange(6), (2, 1))
    values = per_user_metrics(positions, csr([[2, 1, 0], [6, 7]]), (2, 6))
    assert values["ndcg@2"].tolist() == [1, 0]
    assert values["recall@2"].tolist() == [2 / 3, 0]  # three do not fit in two
    assert values["recall@6"].tolist() == [1, 0]


def test_one_target_makes_recall_and_hit_rate_equal():
    positions = np.stack([np.random.default_rng(s).permutation(9) for s in range(20)])
    values = per_user_metrics(positions, csr([[4]] * 20), (3,))
    assert values["recall@3"].tolist() == values["hit_rate@3"].tolist()
    assert 0 < values["recall@3"].mean() < 1


def test_rows_do_not_see_each_others_targets():
    found = hits(np.array([[0, 1], [0, 1]]), csr([[1], [0]]))
    assert found.tolist() == [[False, True], [True, False]]


def test_rejects_what_cannot_be_measured():
    positions = np.zeros((1, 3), np.int32)
    with pytest.raises(ConfigError, match=r"\[5\]"):
        per_user_metrics(positions, csr([[1]]), [5])
    with pytest.raises(ConfigError, match="without"):
        per_user_metrics(positions, csr([[]]), [1])
    with pytest.raises(ConfigError, match="one list per query"):
        per_user_metrics(positions, csr([[1], [2]]), [1])
