"""An inverted file of standard TensorFlow operations.

The catalogue is divided into tiles of near neighbours (`tfcsmf.retrieval.partitions`).
A query is compared with the mean of every tile; the best tiles are read, one byte per
number; the best of what they hold are scored again in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.retrieval.approximate import ApproximateIndex, Setting, widened
from tfcsmf.retrieval.exact_index import ABSENT, search_in_parts
from tfcsmf.retrieval.partitions import Tiles, make_tiles

# Decoded numbers held at once: 128 MiB.
_DECODED = 2**25
# Largest code: 8 bits with a sign.
_LEVELS = 127


class IvfIndex(ApproximateIndex):
    """Approximate search by tiles; returned scores are inner products.

    Inner products, not cosines: a tile is judged by the inner product with its mean,
    so the norms of candidates count as they do in exact search. Codes are one byte per
    number with one step per dimension, which errs by the same amount for short and long
    candidates; they only choose what is scored again.

    Args:
      candidates: float32 [C, d].
      k: results per query.
      tile: most candidates per tile; default about sqrt(C) / 6.
      probes: tiles searched per query; may be changed.
      oversampling: candidates scored again per result; may be changed.
      widest: largest share of the tiles that calibration tries.
      seed: of the clusters.

    Example:
      >>> candidates = np.random.default_rng(0).normal(size=(500, 4))
      >>> index = IvfIndex(candidates.astype(np.float32), k=3, probes=40)
      >>> query = tf.constant([[1.0, 2.0, 0.0, 0.0]])
      >>> scores, positions = index.search(query, 3)
      >>> best = np.argsort(-candidates @ [1, 2, 0, 0])[:3]
      >>> positions.numpy().tolist() == [best.tolist()]
      True
    """

    kind = "ivf"

    def __init__(
        self,
        candidates: np.ndarray,
        k: int,
        tile: int | None = None,
        probes: int = 1,
        oversampling: float = 2.0,
        widest: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(len(candidates), k)
        root = math.sqrt(self.size)
        # Powers of two; 64 for 100,000 candidates, 128 for a million.
        self.tile = tile or 2 ** min(8, max(4, round(math.log2(root / 6))))
        tiles = make_tiles(candidates, max(1, round(2 * root)), self.tile, seed)
        self.tiles = len(tiles.counts)
        self.probes, self.oversampling = min(probes, self.tiles), oversampling
        self._widest = max(1, math.floor(self.tiles * widest))
        self._vectors = _constant(candidates.astype(np.float32, copy=False))
        self._store(candidates, tiles)

    def _store(self, candidates: np.ndarray, tiles: Tiles) -> None:
        firsts = np.cumsum(tiles.counts) - tiles.counts
        ordered = candidates[tiles.order]
        sums = np.add.reduceat(ordered, firsts, axis=0)
        means = (sums / tiles.counts[:, np.newaxis]).astype(np.float32)
        # Adding one vector to all candidates adds the same to all scores of a query,
        # so codes may leave the mean of the catalogue out.
        ordered -= candidates.mean(axis=0)
        largest = np.abs(ordered).max(axis=0)
        steps = np.where(largest > 0, largest / _LEVELS, 1).astype(np.float32)
        ordered /= steps
        codes = np.rint(ordered, out=ordered).astype(np.int8)
        owner = tiles.owner
        places = owner * self.tile + np.arange(self.size) - firsts[owner]
        slots = np.full(self.tiles * self.tile, ABSENT, np.int32)
        slots[places] = tiles.order
        stored = np.zeros((self.tiles * self.tile, candidates.shape[1]), np.int8)
        stored[places] = codes
        self._means = _constant(np.ascontiguousarray(means.T))  # [d, tiles]
        self._steps = _constant(steps)
        self._codes = _constant(stored.reshape(self.tiles, self.tile, -1))
        self._slots = _constant(slots.reshape(self.tiles, self.tile))

    def vectors(self) -> tf.Tensor:
        """Returns the candidate vectors; see `Index.vectors`."""
        return tf.convert_to_tensor(self._vectors)

    def take(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the vectors at some positions; see `Index.take`."""
        # From the variable: once a variable has been gathered from, which `search`
        # does, TensorFlow copies the whole of it whenever it is read.
        return tf.gather(self._vectors, tf.maximum(positions, 0))

    def search(
        self,
        queries: tf.Tensor,
        count: tf.Tensor | int,
        allowed: tf.Tensor | None = None,
        widening: tf.Tensor | float = 1.0,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Searches the best tiles; see `Index.search`.

        More tiles are searched where `probes` may hold fewer than `count`.
        """
        count = tf.convert_to_tensor(count, tf.int32)
        # Tiles are half full at the least, but for those of the smallest clusters.
        probes = tf.maximum(self.probes, 2 * count // self.tile + 1)
        probes = tf.minimum(widened(probes, widening), self.tiles)
        width = probes * self.tile * self._steps.shape[0]

        def search(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            scores, positions = self._scan(part, probes, count, allowed)
            return self._score_again(part, scores, positions, count)

        return search_in_parts(search, queries, tf.maximum(_DECODED // width, 1))

    def _scan(
        self,
        queries: tf.Tensor,
        probes: tf.Tensor,
        count: tf.Tensor,
        allowed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Chooses what is scored again by codes, positions int32 [b, n].

        The scores of the codes come with them: -inf at `ABSENT`.
        """
        by_tile = tf.matmul(queries, self._means)  # [b, tiles]
        _, best = tf.math.top_k(by_tile, probes, sorted=False)
        shape = [tf.shape(queries)[0], probes * self.tile]
        codes = tf.cast(tf.gather(self._codes, best), tf.float32)  # [b, p, tile, d]
        codes = tf.reshape(codes, [*shape, self._steps.shape[0]])
        scores = tf.linalg.matvec(codes, queries * self._steps)  # [b, p * tile]
        slots = tf.reshape(tf.gather(self._slots, best), shape)
        if allowed is not None:
            passing = tf.gather(allowed, tf.maximum(slots, 0))
            slots = tf.where(passing, slots, ABSENT)
        scores = tf.where(slots == ABSENT, -np.inf, scores)
        depth = tf.cast(tf.cast(count, tf.float32) * self.oversampling, tf.int32)
        depth = tf.minimum(tf.maximum(depth, count), shape[1])
        scores, places = tf.math.top_k(scores, depth, sorted=False)
        return scores, tf.gather(slots, places, batch_dims=1)

    def _score_again(
        self,
        queries: tf.Tensor,
        scores: tf.Tensor,
        positions: tf.Tensor,
        count: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        products = tf.linalg.matvec(self.take(positions), queries)  # [b, n]
        products = tf.where(positions == ABSENT, -np.inf, products)
        missing = tf.maximum(count - tf.shape(scores)[1], 0)
        padding = [[0, 0], [0, missing]]
        products = tf.pad(products, padding, constant_values=-np.inf)
        positions = tf.pad(positions, padding, constant_values=ABSENT)
        products, order = tf.math.top_k(products, count)
        return products, tf.gather(positions, order, batch_dims=1)

    def settings(self, fetch: int) -> Iterator[Setting]:
        """Yields probes and oversampling; see `ApproximateIndex.settings`."""
        probes = max(1.0, self.k / self.tile)
        while True:
            tried = min(round(probes), self._widest)
            for oversampling in (1.5, 3.0):
                yield {"probes": tried, "oversampling": oversampling}
            if tried == self._widest:
                return
            probes *= math.sqrt(2)

    def describe(self) -> dict[str, Any]:
        """Returns what `cascade.json` says of the index."""
        return {
            "kind": self.kind,
            "is_exact": False,
            "tiles": self.tiles,
            "tile": self.tile,
            "probes": self.probes,
            "oversampling": self.oversampling,
        } | self.measured()


def _constant(values: np.ndarray) -> tf.Variable:
    return tf.Variable(values, trainable=False)
