"""ESANS: easy, hard and virtual negatives of every positive, by semantic clusters."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcsmf.config import EsansConfig
from tfcsmf.data.inputs import flat_ranges
from tfcsmf.losses.own_negatives import POSITIVE
from tfcsmf.negatives.alias import alias_tables
from tfcsmf.negatives.sampler import Drawn, NegativeSampler, OwnDraws, PoolSampler


class EsansSampler(NegativeSampler):
    """Draws from an item's surroundings in constant time per draw.

    Easy negatives of positive i come from other clusters of the first level than i's,
    cluster j with P(j|i) = softmax_j(-dist(C_i, C_j)), and within it any item with the
    same chance; two by two from one cluster. Hard ones come from the same cluster of
    the first level and another of the second, each item with the same chance. No item
    that shares both codes with i is drawn, and none in the batch is its negative.

    A draw is a look-up in an alias table and an offset into the items sorted by their
    codes; hard draws jump over the items of the positive's own second code.

    Args:
      first: int32 [C], codes of the first level, -1 for items without any.
      second: int32 [C].
      centres: float [K1, d], of the first level.
      trained: items below it are drawn; the others nobody met in training.
      settings: counts, weights and what virtual negatives there are.
      uniform: draws that all rows share, with `settings.pool` "mixed".

    References:
      ESANS, arXiv 2502.16077. Drawing by a softmax of distances is published; equal
      chances within a cluster are our reading.
    """

    def __init__(
        self,
        first: np.ndarray,
        second: np.ndarray,
        centres: np.ndarray,
        trained: int,
        settings: EsansConfig,
        uniform: int = 0,
    ) -> None:
        self.in_batch = settings.pool != "none"
        draws = uniform if settings.pool == "mixed" else 0
        self._shared = PoolSampler(draws, len(first))
        self.shared_draws = self._shared.shared_draws
        self.own_draws = settings.easy + settings.hard
        self.settings = settings
        count, width = len(centres), int(second.max(initial=0)) + 1
        self._width = width
        self._first = tf.constant(first, tf.int32)
        # One number for both codes; -1 where there are none.
        codes = np.where(first < 0, -1, first.astype(np.int64) * width + second)
        self._codes = tf.constant(codes, tf.int32)
        drawn = np.flatnonzero(first[:trained] >= 0)
        order = drawn[np.argsort(codes[drawn], kind="stable")]
        self._items = tf.constant(order if len(order) else [0], tf.int32)
        # Items of both codes c are at [bounds[c], bounds[c + 1]).
        bounds = np.searchsorted(codes[order], np.arange(count * width + 1))
        self._bounds = tf.constant(bounds, tf.int32)
        sizes = np.diff(bounds[::width])
        self.probability = cluster_probability(
            centres, sizes, settings.distance_scale
        )  # [K1, K1]
        keep, other = alias_tables(self.probability)
        self._keep, self._other = tf.constant(keep), tf.constant(other)
        with np.errstate(divide="ignore"):
            log_item = np.log(self.probability) - np.log(sizes)
        self._log_item = tf.constant(np.where(sizes > 0, log_item, -np.inf), tf.float32)
        self.pairs = _pairs(settings)

    def draw(self, targets: tf.Tensor, seed: tf.Tensor) -> Drawn:
        """See `NegativeSampler.draw`."""
        seeds = tf.random.experimental.stateless_split(seed, 4)
        # One without codes stands in for others' tables, and is masked.
        coded = tf.gather(self._first, targets) >= 0
        codes = tf.maximum(tf.gather(self._codes, targets), 0)
        parts = []
        if self.settings.easy:
            parts.append(self._easy(codes // self._width, seeds[0], seeds[1]))
        if self.settings.hard:
            parts.append(self._hard(codes, seeds[2]))
        number = tf.size(targets)
        if not parts:
            none = tf.zeros([number, 0])
            empty = (tf.cast(none, tf.int32), none, tf.cast(none, tf.bool))
            parts = [empty]
        items, log_counts, mask = (
            tf.concat([part[which] for part in parts], axis=1) for which in range(3)
        )
        mask &= coded[:, tf.newaxis]
        mix = self._mix(number, seeds[3])
        other = tf.random.experimental.stateless_fold_in(seed, 4)
        shared = self._shared.draw(targets, other).shared
        return Drawn(shared, OwnDraws(items, log_counts, mask, mix))

    def _easy(
        self, clusters: tf.Tensor, seed: tf.Tensor, other_seed: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        draws, count = self.settings.easy, self._keep.shape[0]
        shape = [tf.size(clusters), draws // 2]
        column = tf.random.stateless_uniform(shape, seed, maxval=count, dtype=tf.int32)
        places = clusters[:, tf.newaxis] * count + column
        flat_keep, flat_other = (tf.reshape(t, [-1]) for t in (self._keep, self._other))
        toss, *within = tf.unstack(tf.random.stateless_uniform([3, *shape], other_seed))
        chosen = tf.where(
            toss < tf.gather(flat_keep, places), column, tf.gather(flat_other, places)
        )
        chosen = tf.concat([chosen, chosen], axis=1)  # [n, draws]
        start = tf.gather(self._bounds, chosen * self._width)
        size = tf.gather(self._bounds, (chosen + 1) * self._width) - start
        slots = start + _below(tf.concat(within, axis=1), size)
        log_item = tf.gather(
            tf.reshape(self._log_item, [-1]), clusters[:, tf.newaxis] * count + chosen
        )
        mask = tf.math.is_finite(log_item)
        counts = tf.where(mask, log_item, 0.0) + np.log(draws)
        counts -= np.log(self.settings.easy_weight)
        return self._at(slots), counts, mask

    def _hard(self, codes: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        draws = self.settings.hard
        clusters = codes // self._width
        start = tf.gather(self._bounds, clusters * self._width)
        stop = tf.gather(self._bounds, (clusters + 1) * self._width)
        own_start = tf.gather(self._bounds, codes)
        own_size = tf.gather(self._bounds, codes + 1) - own_start
        size = (stop - start - own_size)[:, tf.newaxis]
        share = tf.random.stateless_uniform([tf.size(codes), draws], seed)
        slots = start[:, tf.newaxis] + _below(share, size)
        jump = slots >= own_start[:, tf.newaxis]
        slots += tf.where(jump, own_size[:, tf.newaxis], 0)
        mask = tf.repeat(size > 0, draws, axis=1)
        counts = np.log(draws) - tf.math.log(tf.cast(tf.maximum(size, 1), tf.float32))
        counts = tf.repeat(counts - np.log(self.settings.hard_weight), draws, axis=1)
        return self._at(slots), counts, mask

    def _at(self, slots: tf.Tensor) -> tf.Tensor:
        # Where nothing can be drawn the slot may be beyond the end; it is masked.
        return tf.gather(self._items, tf.minimum(slots, tf.size(self._items) - 1))

    def _mix(self, number: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        shares = tf.random.stateless_uniform([number, len(self.pairs)], seed)
        hard = tf.constant([first == POSITIVE for first, _ in self.pairs], tf.bool)
        low, high = (0.0, 0.5) if self.settings.mixing == "safe" else (-0.5, 1.5)
        return tf.where(hard, low + (high - low) * shares, shares)

    def kept_apart(self, targets: tf.Tensor, items: tf.Tensor) -> tf.Tensor | None:
        """See `NegativeSampler.kept_apart`: those that share both codes."""
        if not self.in_batch:
            return None
        codes = tf.gather(self._codes, items)
        order = tf.argsort(codes, stable=True)
        ordered = tf.gather(codes, order)
        wanted = tf.gather(self._codes, targets)
        first, last = (
            tf.searchsorted(ordered, wanted, side=side, out_type=tf.int64)
            for side in ("left", "right")
        )
        length = tf.where(wanted >= 0, last - first, 0)
        owners, slots = flat_ranges(first, length)
        columns = tf.gather(order, slots)
        return tf.stack([tf.cast(owners, tf.int32), columns], axis=1)


def cluster_probability(
    centres: np.ndarray, sizes: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """Returns P(j|i) = softmax_j(-scale dist(C_i, C_j)) over other clusters.

    Args:
      centres: float [K, d].
      sizes: int [K]; empty clusters are never drawn.
      scale: >= 0.

    Returns:
      float64 [K, K]; a row of zeros where there is no other cluster.

    Example:
      >>> cluster_probability(np.array([[0.0], [1.0], [1.0]]), np.ones(3))[0].tolist()
      [0.0, 0.5, 0.5]
    """
    centres = centres.astype(np.float64)
    squares = (centres**2).sum(axis=1)
    square = squares[:, None] + squares - 2.0 * centres @ centres.T
    logits = -scale * np.sqrt(np.maximum(square, 0.0))
    allowed = (sizes > 0) & ~np.eye(len(centres), dtype=bool)
    weights = np.where(allowed, np.exp(logits), 0.0)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)


def _pairs(settings: EsansConfig) -> tuple[tuple[int, int], ...]:
    """Returns the places of every virtual negative's two vectors."""
    half, easy, hard = settings.easy // 2, settings.easy, settings.hard
    pairs: list[tuple[int, int]] = []
    if settings.virtual in ("both", "simple"):
        pairs += [(place, place + half) for place in range(half)]
        pairs += [(easy + i, easy + i + hard // 2) for i in range(hard // 2)]
    if settings.virtual in ("both", "hard"):
        pairs += [(POSITIVE, easy + place) for place in range(hard)]
    return tuple(pairs)


def _below(share: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns floor(share * size), below size where size > 0; share in [0, 1)."""
    # In double precision, or large clusters would have items that are never drawn.
    product = tf.cast(share, tf.float64) * tf.cast(size, tf.float64)
    return tf.minimum(tf.cast(product, tf.int32), tf.maximum(size - 1, 0))
