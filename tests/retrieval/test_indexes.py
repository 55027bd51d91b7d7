import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import RetrievalConfig
from tfcsmf.data.prepared import Csr
from tfcsmf.errors import ExportError
from tfcsmf.evaluation.topk import top_k
from tfcsmf.retrieval import exact_index
from tfcsmf.retrieval.approximate import random_fusions
from tfcsmf.retrieval.exact_index import ExactIndex, drop_excluded
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.ivf_index import IvfIndex
from tfcsmf.retrieval.scann_index import ScannIndex


def clustered(size, dimension=16, centres=40, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, dimension))
    noise = 0.3 * rng.normal(size=(size, dimension))
    return (means[rng.integers(centres, size=size)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def scann_index():
    pytest.importorskip("scann")
    queries = clustered(90, seed=5).reshape(30, 3, 16)
    settings = RetrievalConfig(index="scann", k=10, max_exclusions=20)
    return build_index(clustered(3000), queries, settings)


@pytest.fixture(params=["exact", "scann", "ivf"])
def index(request):
    """An index of 3000 candidates that searches all there is."""
    if request.param == "exact":
        return ExactIndex(clustered(3000), 10)
    if request.param == "ivf":
        return IvfIndex(clustered(3000), 10, probes=3000, oversampling=3)
    index = request.getfixturevalue("scann_index")
    wide = object.__new__(ScannIndex)  # the same searcher, other parameters
    wide.__dict__.update(
        index.__dict__, leaves_to_search=index.num_leaves, reorder=3000
    )
    return wide


def test_results_are_the_largest_inner_products(index):
    queries = clustered(20, seed=3)
    scores, positions = index.search(tf.constant(queries), 10)
    expected, where = top_k(queries, clustered(3000), 10)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(positions, where)


def test_a_batch_is_its_single_queries(index):
    queries = clustered(7, seed=4)
    scores, positions = index.search(tf.constant(queries), 10)
    for row in range(7):
        alone, where = index.search(tf.constant(queries[[row]]), 10)
        np.testing.assert_array_equal(where[0], positions[row])
        np.testing.assert_allclose(alone[0], scores[row], rtol=1e-6)


def test_exclusions_hold_and_the_next_best_move_up(index):
    queries = clustered(5, seed=6)
    rng = np.random.default_rng(0)
    _, best = top_k(queries, clustered(3000), 30)
    excluded = np.stack([rng.choice(row, 12, replace=False) for row in best])
    scores, positions = index.search(tf.constant(queries), 10 + 12)
    scores, positions = drop_excluded(scores, positions, tf.constant(excluded), 10)
    lists = Csr(np.arange(6) * 12, excluded.ravel())
    _, expected = top_k(queries, clustered(3000), 10, lists)
    np.testing.assert_array_equal(positions, expected)


def test_exact_search_in_parts_gives_the_same_answers(monkeypatch):
    queries = clustered(11, seed=7)
    whole = ExactIndex(clustered(300), 5).search(tf.constant(queries), 5)
    monkeypatch.setattr(exact_index, "_SCORES", 900)  # three queries at a time
    search = tf.function(ExactIndex(clustered(300), 5).search, autograph=False)
    scores, positions = search(tf.constant(queries), 5)
    np.testing.assert_array_equal(positions, whole[1])
    np.testing.assert_allclose(scores, whole[0], rtol=1e-6)


@pytest.mark.parametrize("size", [30, 3000])
@pytest.mark.parametrize("kind", [ExactIndex, IvfIndex])
def test_an_empty_batch_has_an_empty_answer(kind, size):
    scores, positions = kind(clustered(size), 5).search(tf.zeros([0, 16]), 5)
    assert scores.shape == positions.shape == (0, 5)


# 6: sorted as a whole; 1000: by groups, the last of them incomplete.
@pytest.mark.parametrize("size", [6, 1000])
def test_equal_scores_are_ordered_by_position(size):
    index = ExactIndex(np.ones((size, 2), np.float32), 4)
    assert index.search(tf.ones([1, 2]), 4)[1].numpy().tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("size", [63, 64, 65, 700, 1025])
def test_what_fills_the_last_group_is_never_found(size):
    candidates = np.zeros((size, 1), np.float32)
    candidates[-1] = 1  # the best is the one that is repeated
    for count in (1, 3, size):
        scores, positions = ExactIndex(candidates, 3).search(tf.ones([2, 1]), count)
        assert positions.numpy()[:, 0].tolist() == [size - 1] * 2
        assert positions.numpy().max() < size
        assert [len(set(row)) for row in positions.numpy()] == [count] * 2
        assert scores.numpy()[:, 1:].max(initial=0) == 0


def test_vectors_are_given_back(index):
    candidates = clustered(3000)
    np.testing.assert_array_equal(index.vectors(), candidates)
    chosen = np.int32([[5, 2999], [0, 77], [5, -1]])
    taken = index.take(tf.constant(chosen)).numpy()
    np.testing.assert_array_equal(taken[:2], candidates[chosen[:2]])
    np.testing.assert_array_equal(taken[2, 0], candidates[5])
    assert taken.shape == (3, 2, 16)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_exact_search_is_a_stable_sort_of_all_scores(size, count):
    # Few values, so that many scores are equal, within groups and between them.
    rng = np.random.default_rng(size)
    candidates = rng.integers(-2, 3, (size, 2)).astype(np.float32)
    queries = rng.integers(-2, 3, (7, 2)).astype(np.float32)
    count = min(count, size)
    scores, positions = ExactIndex(candidates, count).search(
        tf.constant(queries), count
    )
    expected = np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(positions, expected)
    products = np.take_along_axis(queries @ candidates.T, expected, axis=1)
    np.testing.assert_array_equal(scores, products)


def test_k_is_at_most_the_catalogue():
    assert ExactIndex(clustered(3), 10).k == 3


def test_excluding_everything_leaves_nothing():
    scores, positions = drop_excluded(
        tf.constant([[2.0, 1.0]]), tf.constant([[1, 0]]), tf.constant([[0, 1, -1]]), 2
    )
    assert positions.numpy().tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()


def test_no_exclusions_at_all_are_legal():
    scores, positions = drop_excluded(
        tf.constant([[2.0, 1.0]]), tf.constant([[1, 0]]), tf.zeros([1, 0], tf.int32), 2
    )
    assert positions.numpy().tolist() == [[1, 0]]


def test_scann_is_calibrated_to_the_target_under_random_weights(scann_index):
    found = scann_index.describe()
    curve = found["curve"]
    assert found["target_reached"] and found["recall"] >= 0.95
    assert [point["recall"] >= 0.95 for point in curve] == [False] * (
        len(curve) - 1
    ) + [True]
    # In the same leaves, more candidates ranked again never find less. More leaves
    # may: their codes compete for as many candidates.
    for few, more in itertools.permutations(curve, 2):
        same = few["leaves_to_search"] == more["leaves_to_search"]
        if same and few["reorder"] < more["reorder"]:
            assert few["recall"] <= more["recall"]
    assert found["leaves_to_search"] == curve[-1]["leaves_to_search"]


def test_scann_tries_the_cheapest_settings_first(scann_index):
    large = object.__new__(ScannIndex)
    large.__dict__.update(scann_index.__dict__, size=10_000_000, num_leaves=3162)
    tried = [tuple(setting.values()) for setting in large.settings(300)]
    assert tried[0] == (25, 300) and tried[-1] == (3162, 30_000)
    assert len(set(tried)) == len(tried)
    # Ranking 600 more again costs as much as 27,000 codes; 24 leaves hold 76,000.
    assert tried.index((25, 900)) < tried.index((49, 300))
    # 8,700 more are 390,000 codes, 1,581 leaves five million.
    assert tried.index((1581, 9000)) < tried.index((3162, 300))


def test_scann_scores_are_inner_products(scann_index):
    queries = clustered(20, seed=8)
    scores, positions = scann_index.search(tf.constant(queries), 10)
    products = queries @ clustered(3000).T
    expected = np.take_along_axis(products, positions.numpy(), axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_scann_reports_what_its_leaves_cannot_fill(scann_index):
    narrow = object.__new__(ScannIndex)
    narrow.__dict__.update(scann_index.__dict__, leaves_to_search=1)
    scores, positions = narrow.search(tf.constant(clustered(4, seed=9)), 2000)
    missing = positions.numpy() == -1
    assert missing.any() and np.isneginf(scores.numpy()[missing]).all()
    kept = positions.numpy()[0][~missing[0]]
    assert len(set(kept)) == len(kept)


def test_a_small_catalogue_is_searched_exactly_with_a_notice(caplog):
    index = build_index(
        clustered(50), np.zeros((1, 1, 16)), RetrievalConfig(index="scann")
    )
    assert index.is_exact and "search needs" in caplog.text


def test_auto_takes_ivf_from_the_configured_size():
    queries = clustered(90, seed=5).reshape(30, 3, 16)

    def build(size):
        settings = RetrievalConfig(k=10, approximate_from=size)
        return build_index(clustered(3000), queries, settings)

    assert build(3001).is_exact
    assert build(3000).describe()["kind"] == "ivf"


def test_auto_is_exact_where_tiles_cannot_tell_candidates_apart(caplog):
    rng = np.random.default_rng(0)
    scattered = rng.normal(size=(2000, 32)).astype(np.float32)
    queries = rng.normal(size=(20, 3, 32))
    settings = RetrievalConfig(k=10, approximate_from=1000)
    assert build_index(scattered, queries, settings).is_exact
    assert "exact instead" in caplog.text
    # Asked for by name, it is widened as far as needed.
    index = build_index(scattered, queries, RetrievalConfig(k=10, index="ivf"))
    assert index.describe()["kind"] == "ivf" and index.describe()["recall"] >= 0.95


def test_vectors_that_are_not_finite_are_refused():
    vectors = clustered(10)
    vectors[3, 3] = np.nan
    with pytest.raises(ExportError, match="finite"):
        build_index(vectors, np.zeros((1, 1, 16)), RetrievalConfig())
    with pytest.raises(ExportError, match="at least one candidate"):
        build_index(vectors[:0], np.zeros((1, 1, 16)), RetrievalConfig())


def test_random_fusions_are_convex_mixtures():
    vectors = np.eye(3, dtype=np.float32)[np.newaxis].repeat(500, axis=0)
    mixed = random_fusions(vectors, seed=0)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)
    assert (mixed >= 0).all()
    np.testing.assert_allclose(mixed.mean(axis=0), 1 / 3, atol=0.05)
