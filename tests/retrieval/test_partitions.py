import numpy as np
import pytest

from tfcsmf.retrieval.partitions import make_tiles, nearest, train_centres


@pytest.mark.parametrize(("count", "clusters", "size"), [(1, 1, 4), (500, 20, 16)])
def test_every_vector_has_one_place_and_no_tile_is_too_large(count, clusters, size):
    vectors = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    tiles = make_tiles(vectors, clusters, size, seed=1)
    assert sorted(tiles.order.tolist()) == list(range(count))
    assert 1 <= tiles.counts.min() and tiles.counts.max() <= size
    assert tiles.counts.sum() == count
    assert tiles.owner.tolist() == sorted(tiles.owner.tolist())


def test_equal_vectors_are_divided_too():
    tiles = make_tiles(np.ones((100, 2), np.float32), 10, 8, seed=0)
    # 100 = 13 x 8 - 4, halved in proportion to the tiles of each side.
    assert len(tiles.counts) == 13 and tiles.counts.max() <= 8


def test_large_clusters_are_cut_across_their_longest_axis():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 2)).astype(np.float32) * [0.01, 5]
    tiles = make_tiles(vectors.astype(np.float32), 1, 32, seed=0)
    assert tiles.counts.tolist() == [32, 32]
    low, high = vectors[tiles.order[:32], 1], vectors[tiles.order[32:], 1]
    assert low.max() < high.min() or high.max() < low.min()


def test_neighbours_share_tiles():
    rng = np.random.default_rng(0)
    groups = rng.integers(10, size=1000)
    centres = rng.normal(size=(10, 8)) * 10
    vectors = (centres[groups] + rng.normal(size=(1000, 8))).astype(np.float32)
    tiles = make_tiles(vectors, 60, 16, seed=0)
    firsts = np.cumsum(tiles.counts) - tiles.counts
    kinds = [
        len(set(groups[tiles.order[first : first + count]]))
        for first, count in zip(firsts, tiles.counts, strict=True)
    ]
    assert np.mean(kinds) < 1.1


def test_the_nearest_centre_is_that_of_smallest_distance():
    rng = np.random.default_rng(0)
    vectors, centres = rng.normal(size=(2, 40, 5)).astype(np.float32)
    distances = np.square(vectors[:, np.newaxis] - centres).sum(axis=2)
    np.testing.assert_array_equal(nearest(vectors, centres), distances.argmin(axis=1))


def test_centres_are_the_means_of_their_vectors_in_the_end():
    sample = np.float32([[0], [1], [2], [100], [101], [102]])
    centres = train_centres(sample, 2, np.random.default_rng(0))
    assert sorted(centres.ravel().tolist()) == [1, 101]


def test_the_same_seed_gives_the_same_tiles():
    vectors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    first, second = (make_tiles(vectors, 20, 8, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.order, second.order)
    np.testing.assert_array_equal(first.counts, second.counts)
