"""Semantic clusters: found where they are, kept whole, and told apart by their log."""

import dataclasses

import numpy as np
import pytest

from tfcsmf.config import ClusterConfig
from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.prepared import EntityTable, Examples, Pairs
from tfcsmf.errors import CheckpointError, ConfigError
from tfcsmf.negatives.clusters import (
    SemanticClusters,
    build_clusters,
    cluster_vectors,
    clusters_of_run,
)
from tfcsmf.negatives.diagnostics import describe_clusters, purity
from tfcsmf.negatives.modalities import align, behaviour_vectors, item_vectors

SETTINGS = ClusterConfig(
    aligned_dimension=8, alignment_steps=30, first_level=4, second_level=3
)


def two_views(seed=0, items=200, topics=4):
    """Two modalities of items about some topics, in unrelated coordinates."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(topics, size=items)
    hidden = 4 * np.eye(topics)[topic] + 0.3 * rng.normal(size=(items, topics))
    views = [hidden @ rng.normal(size=(topics, width)) for width in (6, 10)]
    vectors = {n: v.astype(np.float32) for n, v in zip("ab", views, strict=True)}
    return vectors, topic


def with_vectors(log, vectors, more=0):
    """The log with vectors as the one feature of its items, and new items."""
    encoder = FeatureEncoder("look", "vector", width=vectors.shape[1])
    missing = np.isnan(vectors[:, :1])
    encoded = np.concatenate([np.nan_to_num(vectors), missing], axis=1)
    ids = np.append(log.items.ids, [f"new{n}" for n in range(more)])
    table = EntityTable(ids, log.items.trained, (encoder,), {"look": encoded})
    return dataclasses.replace(log, items=table)


@pytest.fixture(scope="module")
def looks(tiny_log):
    vectors = np.random.default_rng(1).normal(size=(tiny_log.items.size, 5))
    vectors[3] = np.nan
    return vectors.astype(np.float32)


def test_topics_are_found_in_both_views_aligned():
    vectors, topic = two_views()
    vectors["a"][:20] = np.nan  # these have one of the two alone
    clusters = cluster_vectors(vectors, SETTINGS, seed=0)
    assert purity(clusters.first, topic) > 0.9
    assert set(np.unique(clusters.second)) == {0, 1, 2}
    # Aligned, the views of one item are nearer to each other than to other topics'.
    projections = align(vectors, 8, 30, seed=0)
    one, other = (projections[name](vectors[name])[20:] for name in "ab")
    cosine = one @ other.T
    same = topic[20:, None] == topic[20:]
    assert cosine[same].mean() > cosine[~same].mean() + 0.5


def test_one_modality_is_residual_k_means():
    vectors = {"a": two_views()[0]["a"]}
    clusters = cluster_vectors(vectors, SETTINGS, seed=0)
    (projection,) = clusters.projections.values()
    values = projection(vectors["a"])
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, rtol=1e-5)

    def nearest(values, centres):
        return ((values[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)

    np.testing.assert_array_equal(clusters.first, nearest(values, clusters.centres))
    residuals = values - clusters.centres[clusters.first]
    expected = nearest(residuals, clusters.second_centres)
    np.testing.assert_array_equal(clusters.second, expected)


def test_behaviour_vectors_factorise_the_mutual_information(tiny_log):
    """Of three users: items 0 and 1 met by two of them, 2 and 3 by the third."""
    users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 3])
    pairs = Pairs(users.astype(np.int32), items.astype(np.int32), np.zeros(6))
    log = dataclasses.replace(tiny_log, train={"x": Examples(pairs, np.zeros((6, 0)))})
    vectors = behaviour_vectors(log, 4, seed=0)
    assert vectors.shape == (tiny_log.items.size, 4)
    assert np.isnan(vectors[4:]).all()
    # p(0, 1) = 2/6 of ordered pairs, p(0) = p(1) = 2/6; p(2, 3) = p(2) = p(3) = 1/6.
    # The matrix has these information values off its diagonal: log 3 and log 6.
    lengths = np.linalg.norm(vectors[:4], axis=1)
    expected = np.sqrt([np.log(3), np.log(3), np.log(6), np.log(6)])
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)
    assert np.abs(vectors[:2] @ vectors[2:4].T).max() < 1e-4


def test_items_without_any_vector_have_no_codes(tiny_log, looks):
    log = with_vectors(tiny_log, looks)
    settings = SETTINGS.model_copy(update={"modalities": ("look",)})
    clusters = build_clusters(log, settings, seed=0)
    assert clusters.first[3] == clusters.second[3] == -1
    assert (np.delete(clusters.first, 3) >= 0).all()
    assert set(item_vectors(log, None, 4, 0)) == {"look", "behaviour"}
    with pytest.raises(ConfigError, match="look.*Received: 'lok'"):
        item_vectors(log, ("lok",), 4, 0)


def test_an_artefact_is_reused_or_made_again(tmp_path, tiny_log, looks, monkeypatch):
    log = with_vectors(tiny_log, looks)
    first = clusters_of_run(log, SETTINGS, 0, tmp_path / "clusters")
    module = "tfcsmf.negatives.clusters.build_clusters"
    with monkeypatch.context() as patch:
        patch.setattr(module, lambda *_: pytest.fail("made again"))
        again = clusters_of_run(log, SETTINGS, 0, tmp_path / "clusters")
    for name in ("ids", "first", "second", "centres", "second_centres", "places"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    other = clusters_of_run(log, SETTINGS, 1, tmp_path / "clusters")
    assert other.key != first.key
    (tmp_path / "clusters" / "clusters.npz").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="clusters"):
        SemanticClusters.load(tmp_path / "clusters")
    clusters_of_run(log, SETTINGS, 1, tmp_path / "clusters")
    assert SemanticClusters.load(tmp_path / "clusters").key == other.key
    assert [path.name for path in tmp_path.iterdir()] == ["clusters"]


def test_new_items_join_the_nearest_clusters(tiny_log, looks):
    settings = SETTINGS.model_copy(update={"modalities": ("look",)})
    clusters = build_clusters(with_vectors(tiny_log, looks), settings, seed=0)
    more = np.concatenate([looks, looks[:2], np.full((1, 5), np.nan, np.float32)])
    log = with_vectors(tiny_log, more, more=3)
    order = np.random.default_rng(0).permutation(log.items.size)
    table = dataclasses.replace(
        log.items,
        ids=log.items.ids[order],
        features={"look": log.items.features["look"][order]},
    )
    fresh = clusters.refreshed(dataclasses.replace(log, items=table))
    back = np.argsort(order)
    size = len(looks)
    np.testing.assert_array_equal(fresh.first[back][:size], clusters.first)
    np.testing.assert_array_equal(fresh.second[back][:size], clusters.second)
    # Copies of items 0 and 1, and one that nothing is known of.
    np.testing.assert_array_equal(fresh.first[back][size:], [*clusters.first[:2], -1])
    np.testing.assert_array_equal(fresh.second[back][size:], [*clusters.second[:2], -1])


def test_random_clusters_know_nothing_of_the_items(tiny_log):
    settings = SETTINGS.model_copy(update={"modalities": ("random",)})
    clusters = build_clusters(tiny_log, settings, seed=0)
    assert sorted(set(clusters.first)) == [0, 1, 2, 3]
    again = build_clusters(tiny_log, settings, seed=0)
    np.testing.assert_array_equal(again.first, clusters.first)
    other = build_clusters(tiny_log, settings, seed=1)
    assert (other.first != clusters.first).any()
    fresh = clusters.refreshed(with_vectors(tiny_log, np.zeros((6, 1)), more=1))
    assert len(fresh.first) == tiny_log.items.size + 1 and fresh.first[-1] == -1


def test_purity_and_description(tiny_log, looks):
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 6, 6, 6])) == 0.8
    assert purity(np.array([0, 0, -1]), np.array([5, 5, 6])) == 1.0
    log = tiny_log
    clusters = build_clusters(log, SETTINGS, seed=0)
    found = describe_clusters(clusters, log.items)
    assert found["items"] == log.items.size
    assert sum(found["sizes"]) == found["items"] - found["without_vectors"]
    categories = [e.name for e in log.items.encoders if e.kind == "categorical"]
    assert set(found["purity"]) == set(categories) != set()
    for value in found["purity"].values():
        assert value["largest_category"] <= value["first_level"] <= value["both_levels"]
