import numpy as np
import pytest

from tfcsmf.data.prepared import Csr
from tfcsmf.errors import ConfigError, TfcsmfError
from tfcsmf.evaluation import topk


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return Csr(offsets, np.array([i for row in rows for i in row], np.int32))


def reference(scores, k, rows):
    """Full stable sort of every row, one query at a time."""
    scores = np.array(scores, np.float32)
    best = np.full((len(scores), k), -np.inf, np.float32)
    positions = np.full((len(scores), k), -1, np.int32)
    for q, row in enumerate(scores):
        left_out = set(rows[q])
        order = [c for c in np.argsort(-row, kind="stable") if c not in left_out][:k]
        best[q, : len(order)] = row[order]
        positions[q, : len(order)] = order
    return best, positions


def instance(seed, queries=7, candidates=53, dimension=4):
    """Small integers: products are exact in any order, and ties are frequent."""
    generator = np.random.default_rng(seed)
    q = generator.integers(-2, 3, (queries, dimension)).astype(np.float32)
    c = generator.integers(-2, 3, (candidates, dimension)).astype(np.float32)
    rows = [
        generator.choice(candidates, generator.integers(0, candidates), replace=False)
        for _ in range(queries)
    ]
    return q, c, rows


@pytest.mark.parametrize("k", [1, 5, 53, 60])
@pytest.mark.parametrize("batch, block", [(512, 65536), (3, 10), (1, 1), (7, 53)])
def test_equals_a_full_stable_sort(k, batch, block):
    q, c, rows = instance(k)
    for exclude in (rows, [[] for _ in rows]):
        scores, positions = topk.top_k(q, c, k, csr(exclude), batch, block)
        expected_scores, expected = reference(q @ c.T, k, exclude)
        np.testing.assert_array_equal(positions, expected)
        np.testing.assert_array_equal(scores, expected_scores)
        assert (scores.dtype, positions.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("order", ["random", "rising", "falling"])
@pytest.mark.parametrize("candidates", [64 * 20, 64 * 41 + 5])
def test_groups_of_candidates_change_nothing(k, order, candidates):
    q, c, rows = instance(k, 7, candidates)
    if order != "random":  # the best at the end of the catalogue, or at its start
        c = c[np.argsort(c.sum(axis=1) * (1 if order == "rising" else -1))]
        q = np.abs(q)
    for block in (64 * 20, 64 * 32 + 1, 65536):
        got = topk.top_k(q, c, k, csr(rows), 4, block)
        for ours, expected in zip(got, reference(q @ c.T, k, rows), strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_groups_of_excluded_candidates_hold_nothing():
    left = [5, 700]
    excluded = np.setdiff1d(np.arange(64 * 20), left)
    scores, positions = topk.top_k(
        np.ones((1, 1)), np.ones((64 * 20, 1)), 3, csr([excluded])
    )
    assert positions.tolist() == [[*left, -1]]
    assert scores.tolist() == [[1.0, 1.0, -np.inf]]


def test_no_exclusions_is_the_same_as_empty_ones():
    q, c, _ = instance(0)
    a, b = topk.top_k(q, c, 9), topk.top_k(q, c, 9, csr([[]] * 7))
    np.testing.assert_array_equal(a[1], b[1])


def test_ties_go_to_the_lower_position_across_blocks():
    _, positions = topk.top_k(
        np.ones((2, 1)), np.ones((10, 1)), 4, csr([[], [0, 4]]), candidate_block=3
    )
    assert positions.tolist() == [[0, 1, 2, 3], [1, 2, 3, 5]]


def test_runs_out_of_candidates_rather_than_return_excluded_ones():
    scores, positions = topk.top_k(
        np.ones((1, 1)), np.ones((4, 1)), 3, csr([[0, 1, 3]]), candidate_block=2
    )
    assert positions.tolist() == [[2, -1, -1]]
    assert scores.tolist() == [[1.0, -np.inf, -np.inf]]


def test_exclusions_may_repeat_and_name_no_candidate():
    _, positions = topk.top_k(
        np.ones((1, 1)), np.ones((3, 1)), 2, csr([[0, 0, -1, 7]]), candidate_block=2
    )
    assert positions.tolist() == [[1, 2]]


def test_random_floats_agree_with_numpy():
    generator = np.random.default_rng(3)
    q, c = generator.normal(size=(20, 16)), generator.normal(size=(500, 16))
    scores, positions = topk.top_k(q, c, 10, query_batch=6, candidate_block=64)
    expected_scores, expected = reference(q @ c.T, 10, [[]] * 20)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_given_scores_share_the_rules():
    q, c, rows = instance(5)
    asked = []

    def score(part):
        asked.append(len(part))
        return q[part] @ c.T

    got = topk.top_k_scores(score, 7, 53, 20, csr(rows), query_batch=3)
    for ours, expected in zip(got, reference(q @ c.T, 20, rows), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert asked == [3, 3, 1]


def test_one_trace_serves_every_shape():
    before = topk._merge_vectors.experimental_get_tracing_count()
    for k, block in [(2, 5), (4, 7), (60, 53)]:
        topk.top_k(*instance(1)[:2], k, candidate_block=block)
    assert topk._merge_vectors.experimental_get_tracing_count() <= max(before, 1)


def test_no_queries_and_no_candidates():
    scores, positions = topk.top_k(np.ones((0, 2)), np.ones((3, 2)), 2)
    assert scores.shape == positions.shape == (0, 2)
    _, positions = topk.top_k(np.ones((1, 2)), np.ones((0, 2)), 2)
    assert positions.tolist() == [[-1, -1]]


def test_errors_say_what_was_received():
    with pytest.raises(TfcsmfError, match="diverged"):
        topk.top_k(np.full((1, 2), np.nan), np.ones((3, 2)), 2)
    with pytest.raises(ConfigError, match="2 and 3"):
        topk.top_k(np.ones((1, 2)), np.ones((3, 3)), 2)
    with pytest.raises(ConfigError, match="at least 1"):
        topk.top_k(np.ones((1, 2)), np.ones((3, 2)), 0)
    with pytest.raises(ConfigError, match="one list per query, 1"):
        topk.top_k(np.ones((1, 2)), np.ones((3, 2)), 1, csr([[], []]))
    with pytest.raises(ConfigError, match=r"\(1, 4\)"):
        topk.top_k_scores(lambda rows: np.ones((1, 3)), 1, 4, 2)
    with pytest.raises(TfcsmfError, match="NaN"):
        topk.top_k_scores(lambda rows: np.full((1, 4), np.nan), 1, 4, 2)
    with pytest.raises(TfcsmfError, match="infinity"):
        topk.top_k_scores(lambda rows: np.full((1, 4), np.inf), 1, 4, 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_products_that_overflow_are_refused(sign):
    large = np.full((1, 2), sign * 1e19)
    assert topk.top_k(large / 10, large, 1)[1].tolist() == [[0]]
    with pytest.raises(TfcsmfError, match=r"1.0e\+20 .queries. and 1.0e\+19"):
        topk.top_k(large * 10, large, 1)
