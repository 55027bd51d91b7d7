"""Divides vectors into tiles: small groups of near neighbours, of bounded size.

K-means first, on a sample; then every cluster is halved across its longest axis until
its parts fit into a tile. Clusters differ much in size, tiles little, so that an index
can store and read them as one array with few empty places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# Vectors compared with all centres at once: at most 64 MiB of distances.
_DISTANCES = 2**24
_ITERATIONS = 8
# Sampled vectors per cluster; more moves the centres little.
_SAMPLE = 64
_POWER_ITERATIONS = 4


@dataclass(frozen=True)
class Tiles:
    """A partition of n vectors.

    Attributes:
      order: int64 [n], rows of the vectors, tile by tile.
      counts: int64 [tiles], vectors per tile, 1 to the largest size allowed.
    """

    order: np.ndarray
    counts: np.ndarray

    @property
    def owner(self) -> np.ndarray:
        """Tile of every entry of `order`, int64 [n]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def make_tiles(vectors: np.ndarray, clusters: int, size: int, seed: int) -> Tiles:
    """Partitions vectors by Euclidean distance.

    Args:
      vectors: float32 [n, d], n >= 1.
      clusters: clusters of the first step, at most n are made.
      size: most vectors per tile.
      seed: of the sample and the first centres.

    Example:
      >>> vectors = np.float32([[0], [9], [1], [10], [2]])
      >>> tiles = make_tiles(vectors, clusters=2, size=2, seed=0)
      >>> tiles.counts.max() <= 2, sorted(tiles.order.tolist())
      (np.True_, [0, 1, 2, 3, 4])
    """
    rng = np.random.default_rng([seed, 29])
    clusters = min(clusters, len(vectors))
    wanted = min(len(vectors), clusters * _SAMPLE)
    chosen = np.sort(rng.choice(len(vectors), wanted, replace=False))
    centres = train_centres(vectors[chosen], clusters, rng)
    labels = nearest(vectors, centres)
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=clusters)
    return _split(vectors, Tiles(order, counts[counts > 0]), size, rng)


def train_centres(
    sample: np.ndarray, clusters: int, rng: np.random.Generator
) -> np.ndarray:
    """Runs k-means (Lloyd's iterations) from random vectors of the sample.

    A cluster left empty starts again beside a random vector.

    Args:
      sample: float32 [n, d], n >= clusters.
      clusters: number of centres.
      rng: source of the first centres.

    Returns:
      float32 [clusters, d].
    """
    centres = sample[rng.choice(len(sample), clusters, replace=False)]
    for _ in range(_ITERATIONS):
        labels = nearest(sample, centres)
        counts = np.bincount(labels, minlength=clusters)
        sums = tf.math.unsorted_segment_sum(sample, labels, clusters).numpy()
        centres = sums / np.maximum(counts, 1)[:, np.newaxis].astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centres[empty] = sample[rng.choice(len(sample), len(empty))]
    return centres


def nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the nearest centre of every vector by Euclidean distance, int64 [n]."""
    block = max(1, _DISTANCES // len(centres))
    # |v - c|^2 = |v|^2 - 2 (<v, c> - |c|^2 / 2): the largest bracket is nearest.
    columns = tf.constant(centres.T)
    offsets = tf.reduce_sum(tf.square(columns), axis=0) / 2
    return np.concatenate(
        [
            _largest(tf.constant(vectors[start : start + block]), columns, offsets)
            for start in range(0, len(vectors), block)
        ]
    )


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.float32),
    ]
)
def _largest(vectors: tf.Tensor, columns: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    return tf.argmax(tf.matmul(vectors, columns) - offsets, axis=1)


def _split(
    vectors: np.ndarray, tiles: Tiles, size: int, rng: np.random.Generator
) -> Tiles:
    """Halves all groups that are too large, level by level."""
    order, counts = tiles.order, tiles.counts
    while counts.max() > size:
        parts = -(-counts // size)  # tiles each group ends as
        large = parts > 1
        owner = np.repeat(np.arange(len(counts)), counts)
        moving = large[owner]
        names = np.cumsum(large) - 1  # numbers of the large groups among themselves
        groups = names[owner[moving]]
        rows = order[moving]
        along = _projections(vectors[rows], groups, counts[large], rng)
        order[moving] = rows[np.lexsort((along, groups))]
        # In proportion to the tiles of each side, so that all end about equally full.
        left = np.where(large, counts * (parts // 2) // parts, counts)
        both = np.stack([left, counts - left], axis=1).ravel()
        counts = both[both > 0]
    return Tiles(order, counts)


def _projections(
    vectors: np.ndarray,
    groups: np.ndarray,
    counts: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Places vectors on the principal axis of their group, float32 [n]."""
    number = len(counts)
    sums = tf.math.segment_sum(vectors, groups).numpy()
    centred = vectors - (sums / counts[:, np.newaxis]).astype(np.float32)[groups]
    axes = rng.standard_normal((number, vectors.shape[1])).astype(np.float32)
    along = np.einsum("nd,nd->n", centred, axes[groups])
    for _ in range(_POWER_ITERATIONS):
        weighted = centred * along[:, np.newaxis]
        axes = tf.math.segment_sum(weighted, groups).numpy()
        norms = np.linalg.norm(axes, axis=1, keepdims=True)
        axes /= np.maximum(norms, np.finfo(np.float32).tiny)
        along = np.einsum("nd,nd->n", centred, axes[groups])
    return along
