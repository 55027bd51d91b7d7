"""Where the negatives of a batch come from, behind one interface."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class OwnDraws:
    """Negatives drawn for single positives.

    Attributes:
      items: int32 [n, m], catalogue positions, drawn with replacement.
      log_counts: float32 [n, m], logarithm of how often the m draws are expected to
        give each item: its log-probability and the logarithm of the draws.
      mask: bool [n, m], false where nothing could be drawn.
      mix: float32 [n, v], how far virtual negatives lie towards the first of
        their two; see `tfcsmf.losses.own_negatives`.
    """

    items: tf.Tensor
    log_counts: tf.Tensor
    mask: tf.Tensor
    mix: tf.Tensor


@dataclass(frozen=True)
class Drawn:
    """What a sampler draws for one batch.

    Attributes:
      shared: int32 [k], negatives of all rows, with replacement; or `None`.
      own: negatives of single positives; or `None`.
    """

    shared: tf.Tensor | None = None
    own: OwnDraws | None = None


class NegativeSampler(abc.ABC):
    """Says what the negatives of a batch are.

    Batches call `draw` in the compiled input pipeline, with a seed that is a function
    of the run's seed, the stage and the step: a resumed run draws the same. They leave
    out the known positives of a row's user, whatever was drawn.

    Attributes:
      in_batch: positives of other rows are negatives too.
      shared_draws: length of `Drawn.shared`.
      distribution: float [C], probability of each shared draw; `None` is uniform.
      own_draws: m of `OwnDraws`, 0 without.
      memory: candidates of earlier batches that are kept as negatives.
      pairs: the two places of every virtual negative; see
        `tfcsmf.losses.own_negatives`.
      hardest: own negatives that count, see there; `None` for all.
    """

    in_batch: bool = True
    shared_draws: int = 0
    distribution: np.ndarray | None = None
    own_draws: int = 0
    memory: int = 0
    pairs: tuple[tuple[int, int], ...] = ()
    hardest: int | None = None

    @abc.abstractmethod
    def draw(self, targets: tf.Tensor, seed: tf.Tensor) -> Drawn:
        """Draws for one batch.

        Args:
          targets: int32 [n], catalogue positions of the batch's positives.
          seed: int [2], of a stateless generator.
        """

    def kept_apart(self, targets: tf.Tensor, items: tf.Tensor) -> tf.Tensor | None:
        """Returns which items may not be negatives of a positive.

        Args:
          targets: int32 [n], catalogue positions of the positives.
          items: int32 [columns], distinct.

        Returns:
          int32 [k, 2] of (number of the positive, column), sorted, or `None` for none.
        """
        return None


class PoolSampler(NegativeSampler):
    """Negatives shared by all rows, and nothing else.

    Args:
      draws: shared draws per batch, >= 0.
      examples: int32 [any], a draw is one of these, each as likely as the others;
        so the items of training examples are drawn by popularity.
      num_items: catalogue size.
      in_batch: see `NegativeSampler`.
      memory: see `NegativeSampler`.
      counts: int64 [C], instead of `examples`, how many of them every item has.

    Example:
      >>> sampler = PoolSampler(4, 10)
      >>> sampler.draw(tf.constant([1]), tf.constant([0, 0])).shared.shape
      TensorShape([4])
    """

    def __init__(
        self,
        draws: int,
        num_items: int,
        examples: np.ndarray | None = None,
        in_batch: bool = True,
        memory: int = 0,
        counts: np.ndarray | None = None,
    ) -> None:
        self.shared_draws = draws
        self.in_batch = in_batch
        self.memory = memory
        self._size = num_items if examples is None else len(examples)
        self._examples = None if examples is None else tf.constant(examples, tf.int32)
        if examples is not None:
            met = np.bincount(examples, minlength=num_items)
            self.distribution = met / met.sum()
        self._ends = None
        if counts is not None:
            self._ends = tf.constant(np.cumsum(counts), tf.int64)
            self.distribution = counts / counts.sum()

    def draw(self, targets: tf.Tensor, seed: tf.Tensor) -> Drawn:
        """See `NegativeSampler.draw`."""
        if not self.shared_draws:
            return Drawn()
        if self._ends is not None:
            places = tf.random.stateless_uniform(
                [self.shared_draws], seed, maxval=self._ends[-1], dtype=tf.int64
            )
            return Drawn(tf.searchsorted(self._ends, places, side="right"))
        places = tf.random.stateless_uniform(
            [self.shared_draws], seed, maxval=self._size, dtype=tf.int32
        )
        if self._examples is not None:
            places = tf.gather(self._examples, places)
        return Drawn(places)
