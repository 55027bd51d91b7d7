"""Of uniform draws for a positive the hardest: DNS, and mixed with it, MixGCF."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcsmf.config import HardestConfig
from tfcsmf.losses.own_negatives import POSITIVE
from tfcsmf.negatives.sampler import Drawn, NegativeSampler, OwnDraws


class HardestSampler(NegativeSampler):
    """Draws uniformly for every positive; the loss keeps the highest scored.

    Baselines, for comparison with ESANS. Beside the softmax over the batch, if it is
    left in, the kept ones are an emphasis, each standing for `weight` times as many
    items as one draw does.

    Args:
      trained: items below it are drawn; the others nobody met in training.
      settings: how many are drawn and kept.
      mixed: next to draws there are virtual ones between them and the positive,
        a e_pos + (1 - a) e_j with a ~ U(0, 1), and the hardest of both kinds are kept.

    References:
      Zhang et al., Optimizing top-N collaborative filtering via dynamic negative item
      sampling (DNS), SIGIR '13. Huang et al., MixGCF, KDD '21: positive mixing and the
      pick of the hardest, without its hops, for which there is no graph here; a number
      of kept ones, draws among them, and the softmax are our reading.
    """

    def __init__(self, trained: int, settings: HardestConfig, mixed: bool) -> None:
        self.in_batch = settings.in_batch
        self.own_draws, self.hardest = settings.draws, settings.hardest
        if mixed:
            self.pairs = tuple((POSITIVE, place) for place in range(settings.draws))
        self._trained = trained
        self._log_count = np.log(settings.draws / (trained * settings.weight))

    def draw(self, targets: tf.Tensor, seed: tf.Tensor) -> Drawn:
        """See `NegativeSampler.draw`."""
        seeds = tf.random.experimental.stateless_split(seed, 2)
        shape = [tf.size(targets), self.own_draws]
        items = tf.random.stateless_uniform(
            shape, seeds[0], maxval=self._trained, dtype=tf.int32
        )
        mix = tf.random.stateless_uniform([shape[0], len(self.pairs)], seeds[1])
        log_counts = tf.fill(shape, tf.constant(self._log_count, tf.float32))
        # A row's own positives are known ones, which batches leave out.
        return Drawn(None, OwnDraws(items, log_counts, tf.fill(shape, True), mix))
