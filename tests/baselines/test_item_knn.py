"""Item-kNN against hand-computed cosines, and against a dense computation."""

from types import SimpleNamespace

import numpy as np
import pytest

from tfcsmf.baselines import item_knn
from tfcsmf.baselines.item_knn import ItemKnnRanker, similar_items
from tfcsmf.data.prepared import Csr, EvaluationSet, Histories


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return Csr(offsets, np.array([i for row in rows for i in row], np.int32))


def dense(rows, size):
    return np.stack([np.bincount(row, minlength=size) for row in map(np.int64, rows)])


def random_rows(seed, users=30, size=12):
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, size, generator.integers(0, 8)).tolist()
        for _ in range(users)
    ]


@pytest.mark.parametrize("pairs", [1, 40, 5_000_000])
def test_cosines_equal_the_dense_ones_however_they_are_cut(monkeypatch, pairs):
    monkeypatch.setattr(item_knn, "_PAIRS", pairs)
    size = 12
    rows, targets = random_rows(0), random_rows(1)
    x, y = dense(rows, size).astype(float), dense(targets, size).astype(float)
    expected = (x.T @ y) / np.outer(
        np.maximum(np.linalg.norm(x, axis=0), 1),
        np.maximum(np.linalg.norm(y, axis=0), 1),
    )
    similar, cosines = similar_items(csr(rows), csr(targets), size, size)
    got = np.zeros((size, size))
    got[np.repeat(np.arange(size), np.diff(similar.offsets)), similar.items] = cosines
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_the_most_similar_are_kept():
    rows = random_rows(2)
    whole, cosines = similar_items(csr(rows), csr(rows), 12, 12)
    few, kept = similar_items(csr(rows), csr(rows), 12, 3)
    assert np.diff(few.offsets).max() == 3
    for item in range(12):
        start = whole.offsets[item]
        np.testing.assert_array_equal(few.row(item), whole.row(item)[:3])
        place = few.offsets[item]
        count = few.offsets[item + 1] - place
        np.testing.assert_array_equal(
            kept[place : place + count], cosines[start : start + count]
        )
    assert (np.diff(cosines[: whole.offsets[1]]) <= 0).all()


VIEWS = [[0, 1], [0, 2], [1, 2], [3]]
BUYS = [[0], [2], [2], []]


def log():
    lists = {"view": csr(VIEWS), "buy": csr(BUYS)}
    return SimpleNamespace(
        objectives=("view", "buy"),
        history_events=("view", "buy"),
        items=SimpleNamespace(size=5),
        known=lists,
        test_histories=Histories(lists),
    )


def asked(prepared, ends=None):
    users = np.arange(4, dtype=np.int32)
    lists = prepared.test_histories.lists
    if ends is None:
        ends = np.stack([lists[e].offsets[users + 1] for e in ("view", "buy")], axis=1)
    nothing = csr([[]] * 4)
    return EvaluationSet(users, csr([[4]] * 4), ends, nothing, nothing)


def rank(ranker, objective, part, exclude=None):
    exclude = exclude or csr([[]] * 4)
    return ranker.rank(objective, part, np.arange(4), exclude, 5).tolist()


def test_own_events_by_hand():
    prepared = log()
    got = rank(ItemKnnRanker(prepared), "view", asked(prepared))
    # Items 0, 1, 2 are viewed by two users each and pairwise by one: cosine 1/2. User 0
    # viewed 0 and 1: scores 3/2, 3/2, 1, 0, 0; then popularity (3 before 4).
    assert got[0] == [0, 1, 2, 3, 4]
    assert got[1] == [0, 2, 1, 3, 4]
    assert got[3] == [3, 0, 1, 2, 4]  # what is not similar goes by popularity


def test_all_events_lead_to_what_was_bought():
    prepared = log()
    part = asked(prepared)
    # Users 1 and 2 bought item 2, user 0 item 0. User 0 viewed 0 and 1, bought 0.
    # x_0 = (2, 1), norm sqrt 5 over users 0, 1; y_0 = user 0; y_2 = users 1, 2.
    # s(0,0) = 2/sqrt 5; s(0,2) = 1/sqrt 10; s(1,0) = 1/sqrt 2; s(1,2) = 1/2.
    first = 2 * 2 / 5**0.5 + 1 / 2**0.5  # 2.50 for item 0
    second = 2 / 10**0.5 + 1 / 2  # 1.13 for item 2
    assert first > second
    ranker = ItemKnnRanker(prepared, all_events=True)
    assert rank(ranker, "buy", part)[0] == [0, 2, 1, 3, 4]
    # Without buys of their own, users 0 and 3 are told apart by views.
    own = rank(ItemKnnRanker(prepared), "buy", part)
    assert own[3] == [2, 0, 1, 3, 4]  # nothing bought: popularity


def test_masked_items_are_left_out_and_the_rest_moves_up():
    prepared = log()
    part, exclude = asked(prepared), csr([[0, 3], [], [0, 1, 2, 3, 4], []])
    got = rank(ItemKnnRanker(prepared), "view", part, exclude)
    assert got[0] == [1, 2, 4, -1, -1]
    assert got[2] == [-1] * 5


def test_nothing_after_the_query_is_read():
    prepared = log()
    ends = np.zeros((4, 2), np.int64)
    ends[:, 0] = prepared.test_histories.lists["view"].offsets[:4] + 1
    ends[:, 1] = prepared.test_histories.lists["buy"].offsets[:4]
    got = rank(ItemKnnRanker(prepared), "view", asked(prepared, ends))
    assert got[0] == [0, 1, 2, 3, 4]
    assert got[2][0] == 1  # user 2 had viewed item 1, not 2
