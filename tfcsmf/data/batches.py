"""Training batches: a stateless, resumable `tf.data` pipeline.

Batch g of a stage is a pure function of (seed, stage, g): epochs are shuffled by a
stateless permutation and negatives are drawn from stateless generators. A killed
run therefore continues at batch g + 1 with exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.batch_rows import Batch, row_blocks
from tfcsmf.data.inputs import CANDIDATE_ID, EntityInputs, QueryInputs
from tfcsmf.data.known_pairs import (
    joined_pairs,
    known_keys,
    known_lists,
    known_pairs,
)
from tfcsmf.data.prepared import Examples, PreparedLog
from tfcsmf.data.query_rows import TargetChooser, group_examples
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.negatives import mixed_probability, sampling_probability
from tfcsmf.negatives.sampler import NegativeSampler, OwnDraws, PoolSampler

# Generators of one batch are told apart by the last seed entry.
_SHUFFLE, _UNIFORM, _HARD, _DROPOUT, _TARGETS = range(5)


@dataclass(frozen=True)
class BatchSettings:
    """How batches of one stage are made.

    Attributes:
      batch_size: rows per batch (fewer if the stage has fewer); see `QueryRows`.
      uniform_negatives: uniform draws from the catalogue, shared by the batch.
      hard_negatives: draws from the previous level's events without this one.
      history_length: last events kept per history.
      seed: of the run.
      histories: events whose histories are given; `None` for all.
      target_share: see `TargetChooser`.
      visible_share: see `TargetChooser`.
      whole_catalogue: of a catalogue of at most this many items all that are
        trained are candidates of every batch, and no negatives are sampled.
      sampler: where negatives come from, whatever the size of the catalogue. `None`
        is what the other settings say.
      rows_per_user: at most, where time is known; see `group_examples`.
    """

    batch_size: int
    uniform_negatives: int
    hard_negatives: int
    history_length: int
    seed: int
    histories: tuple[str, ...] | None = None
    target_share: float = 0.5
    visible_share: float = 0.0
    whole_catalogue: int = 0
    sampler: NegativeSampler | None = None
    rows_per_user: int | None = None


class StageBatches:
    """Batches of one objective's examples.

    A batch has some rows (queries) and some candidates, each listed once:

    - `query`, `candidate`, `rows`: the towers' inputs, see `row_blocks`;
    - `items`: int32 [columns], the candidates' catalogue positions;
    - `positives`: int32 [n, 2] of (row, column), sorted, at least one per row;
    - `excluded_pairs`: int32 [m, 2], sorted by row: known positives of the row's
      user, which are no negatives;
    - `counts`: float32 [columns], how many draws a candidate stands for; not given
      where all count the same;
    - `draws`: float32 scalar, all draws of negatives; only where positives of other
      rows are none;
    - `own`: only with negatives of single positives. `columns` int32 [n, m]; `added`
      float32 [n, m], the correction of their logits; `mix` float32 [n, v];
    - `pool`: int32 scalar, with `own`: the candidates from this one on are own
      negatives and nothing else. `counts` ends there;
    - `known`: int32 [rows], number of the row's list of known positives; only where
      candidates of earlier batches are kept;
    - `weight`: float32 [n], of the positives; not given where all count the same;
    - `seed`: int [2], of dropout.

    Args:
      log: the prepared log.
      objective: whose examples are the positives.
      settings: see `BatchSettings`.
      labels: int32 [examples], what tells rows of one user apart; see
        `group_examples`.
      label_events: the event of each label; the objective by default.
      first_labels: by history event, the first label whose rows see it; 0, so all, by
        default.

    Attributes:
      rows: the examples by query.
      sampler: draws the negatives; not used with a whole catalogue.
      known: lists of known positives, see `known_lists`.
      num_examples: number of the objective's own examples, repeated ones included;
        of all if no label is its own.
      has_whole_catalogue: see `BatchSettings.whole_catalogue`.
      probability: float32 [C], the chance that one draw of a negative is each
        candidate: the mixture of all sources. None where nothing is drawn.
    """

    def __init__(
        self,
        log: PreparedLog,
        objective: str,
        settings: BatchSettings,
        labels: np.ndarray | None = None,
        label_events: tuple[str, ...] | None = None,
        first_labels: Mapping[str, int] | None = None,
    ) -> None:
        self.examples = log.train[objective]
        self.num_examples = len(self.examples.pairs)
        if labels is not None and label_events and objective in label_events:
            own = label_events.index(objective)
            self.num_examples = int(np.sum(labels == own))
        self._first_labels = dict(first_labels or {})
        self.level = log.objectives.index(objective)
        self.settings = settings
        self.rows = group_examples(self.examples, labels, settings.rows_per_user)
        self.batch_size = min(settings.batch_size, len(self.rows))
        self.num_items = log.items.size
        self.num_users = log.users.size
        # Items nobody met in training would be negatives and nothing else.
        self._trained = max(log.items.trained, int(self.rows.items.max()) + 1)
        sampled = settings.sampler is not None
        self.has_whole_catalogue = (
            not sampled and self._trained <= settings.whole_catalogue
        )
        self.sampler = settings.sampler or PoolSampler(
            settings.uniform_negatives, self.num_items
        )
        self._queries = QueryInputs(
            log.users,
            log.train_histories,
            settings.history_length,
            settings.histories,
        )
        self._targets = TargetChooser(
            self.rows,
            settings.target_share,
            settings.visible_share,
            label_events or (objective,),
            log.order,
        )
        self._candidates = EntityInputs(log.items, CANDIDATE_ID)
        # Tensors, not arrays: a traced function would copy arrays into its graph.
        self._users = tf.constant(self.rows.users)
        self._items = tf.constant(self.rows.items)
        weights = self.rows.weights
        self._weights = None if weights is None else tf.constant(weights)
        self._labels = tf.constant(self.rows.labels)
        self._history_end = tf.constant(self.rows.history_end)
        self.known = known_lists(log.known[objective])
        self._known_keys: tf.Tensor | None = None
        if self.sampler.own_draws:
            keys = known_keys(log.known[objective], self.num_items)
            self._known_keys = tf.constant(keys)
        self._hard = _hard_pool(log, self.level) if settings.hard_negatives else None
        self.hard_negatives = settings.hard_negatives if self._hard is not None else 0
        self.probability = None
        if not self.has_whole_catalogue:
            hard = None
            if self._hard is not None:
                hard = sampling_probability(self._hard, self.num_items)
            self.probability = self._probability(
                self.rows.expected_targets(settings.target_share),
                sampling_probability(self.rows.items, self.num_items),
                hard,
            )

    def _probability(
        self, per_row: float, examples: np.ndarray, hard: np.ndarray | None
    ) -> np.ndarray:
        """Returns `probability` from what is drawn.

        Args:
          per_row: targets of a row.
          examples: float [C], share of the examples.
          hard: float [C], probability of each draw from the previous level.
        """
        # A row's own positives are not among its negatives.
        others = per_row * (self.batch_size - 1) * self.sampler.in_batch
        others += self.sampler.memory  # positives of the batches before
        if others + self.sampler.shared_draws + self.hard_negatives == 0:
            others = 1  # one row and nothing drawn: any distribution will do
        parts = [
            (others, examples),
            (self.sampler.shared_draws, self.sampler.distribution),
        ]
        if hard is not None:
            parts.append((self.hard_negatives, hard))
        return mixed_probability(parts, self.num_items)

    def subset(self, share: float) -> np.ndarray:
        """Returns the numbers of a fixed random subset of the rows, int64 [m]."""
        size = len(self.rows)
        if share >= 1.0:
            return np.arange(size)
        generator = np.random.Generator(
            np.random.PCG64([self.settings.seed, self.level])
        )
        count = max(self.batch_size, int(round(share * size)))
        return np.sort(generator.permutation(size)[:count])

    def steps_per_epoch(self, share: float = 1.0) -> int:
        """Returns the full batches of an epoch; the rest waits for the next."""
        return max(1, len(self.subset(share)) // self.batch_size)

    @property
    def element_spec(self) -> Any:
        """Types and shapes of a batch, whatever its contents."""
        return self.dataset(1.0, 0, 0, 1).element_spec

    def dataset(
        self, share: float, phase: int, first_step: int, last_step: int
    ) -> tf.data.Dataset:
        """Returns batches `first_step` (inclusive) to `last_step` (exclusive).

        Args:
          share: of the rows; 1 takes all.
          phase: tells the generators of training and recovery apart.
          first_step: steps are counted over epochs, from 0.
          last_step: where to stop.
        """
        chosen = tf.constant(self.subset(share), tf.int64)
        per_epoch = self.steps_per_epoch(share)

        def make(step: tf.Tensor) -> Batch:
            return self._batch(step, chosen, per_epoch, phase)

        steps = tf.data.Dataset.range(first_step, last_step)
        return steps.map(
            make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).prefetch(4)

    def _batch(
        self, step: tf.Tensor, chosen: tf.Tensor, per_epoch: int, phase: int
    ) -> Batch:
        stateless = self._seeds(step, phase)
        epoch, within = step // per_epoch, step % per_epoch
        slots = within * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        last = tf.cast(tf.size(chosen) - 1, tf.int64)
        order = tf.random.experimental.index_shuffle(
            slots, stateless(_SHUFFLE, epoch), last
        )
        rows = tf.gather(chosen, order)
        return self._assemble(rows, stateless)

    def _seeds(self, step: tf.Tensor, phase: int) -> Callable[..., tf.Tensor]:
        """Returns a function: purpose (and another counter than the step) -> seed."""
        base = [self.settings.seed % (2**31), 16 * self.level + phase]

        def stateless(purpose: int, counter: tf.Tensor = step) -> tf.Tensor:
            mixed = tf.random.experimental.stateless_fold_in(base, purpose)
            return tf.random.experimental.stateless_fold_in(mixed, counter)

        return stateless

    def _assemble(
        self, rows: tf.Tensor, stateless: Callable[[int], tf.Tensor]
    ) -> Batch:
        users = tf.gather(self._users, rows)
        owners, slots, hidden = self._targets(rows, self.num_items, stateless(_TARGETS))
        targets = tf.gather(self._items, slots)
        # One list of known positives per label and user.
        labels = tf.gather(self._labels, rows)
        known = labels * self.num_users + users
        columns, items, more = self._columns(
            targets, tf.gather(known, owners), stateless
        )
        pool = items[: more["pool"]] if "pool" in more else items
        if self._weights is not None:
            more["weight"] = tf.gather(self._weights, slots)

        def keeps(event: str, owners: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
            kept = hidden.keeps(event, owners, positions)
            first = self._first_labels.get(event, 0)
            return kept & (tf.gather(labels, owners) >= first) if first else kept

        query = self._queries(users, tf.gather(self._history_end, rows), keeps)
        excluded = known_pairs(*self.known, known, pool)
        if not self.has_whole_catalogue:
            apart = self.sampler.kept_apart(targets, pool)
            if apart is not None:
                excluded = joined_pairs(excluded, owners, apart)
            if self.sampler.memory:
                more["known"] = known
        return {
            **row_blocks(query, self._candidates(items)),
            "items": items,
            "positives": tf.stack([tf.cast(owners, tf.int32), columns], axis=1),
            "excluded_pairs": excluded,
            "seed": stateless(_DROPOUT),
            **more,
        }

    def _columns(
        self,
        targets: tf.Tensor,
        known: tf.Tensor,
        stateless: Callable[[int], tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor, Batch]:
        """Chooses the candidates of a batch.

        Args:
          targets: int32 [n], items of the positives.
          known: int32 [n], number of each one's list of known positives.
          stateless: gives the seed of a purpose.

        Returns:
          The targets' columns [n], the items [columns], and what the batch says of
          how they were drawn.
        """
        hard = self._draw_hard(stateless(_HARD)) if self.hard_negatives else None
        if self.has_whole_catalogue:
            counts = None
            if hard is not None:
                # Drawn beside the whole catalogue, they weigh more in it.
                ones = tf.ones([self._trained])
                counts = tf.tensor_scatter_nd_add(
                    ones, hard[:, tf.newaxis], tf.ones_like(hard, tf.float32)
                )
            more = {} if counts is None else {"counts": counts}
            return targets, tf.range(self._trained), more
        drawn = self.sampler.draw(targets, stateless(_UNIFORM))
        pools = [part for part in (targets, drawn.shared, hard) if part is not None]
        items, columns, counts = tf.unique_with_counts(tf.concat(pools, axis=0))
        counts, columns = tf.cast(counts, tf.float32), columns[: tf.size(targets)]
        more = {"counts": counts}
        if not self.sampler.in_batch:
            drawn_ones = tf.fill(tf.shape(targets), -1.0)
            counts = tf.tensor_scatter_nd_add(counts, columns[:, None], drawn_ones)
            more |= {"counts": counts, "draws": tf.maximum(tf.reduce_sum(counts), 1.0)}
        if drawn.own is not None:
            more["pool"] = tf.size(items)
            items, more["own"] = self._own(drawn.own, targets, known, items)
        return columns, items, more

    def _draw_hard(self, seed: tf.Tensor) -> tf.Tensor:
        """Draws pairs of the previous level; returns their items, int32 [n]."""
        assert self._hard is not None  # for the type checker
        draws = tf.random.stateless_uniform(
            [self.hard_negatives], seed, maxval=len(self._hard), dtype=tf.int32
        )
        return tf.gather(self._hard, draws)

    def _own(
        self, own: OwnDraws, targets: tf.Tensor, known: tf.Tensor, items: tf.Tensor
    ) -> tuple[tf.Tensor, Batch]:
        """Adds the negatives of single positives to the items of a batch."""
        keys = tf.cast(known, tf.int64)[:, tf.newaxis] * self.num_items
        keys += tf.cast(own.items, tf.int64)
        place = tf.searchsorted(self._known_keys, tf.reshape(keys, [-1]))
        found = tf.reshape(tf.gather(self._known_keys, place), tf.shape(keys))
        mask = own.mask & tf.not_equal(found, keys)
        # What is left out costs no candidate of its own.
        kept = tf.where(mask, own.items, targets[:, tf.newaxis])
        pool = tf.concat([items, tf.reshape(kept, [-1])], axis=0)
        items, columns = tf.unique(pool)
        columns = columns[tf.size(pool) - tf.size(kept) :]
        added = tf.where(mask, -own.log_counts, EXCLUDED)
        return items, {
            "columns": tf.reshape(columns, tf.shape(kept)),
            "added": tf.ensure_shape(added, [None, own.items.shape[1]]),
            "mix": own.mix,
        }


def _hard_pool(log: PreparedLog, level: int) -> np.ndarray | None:
    """Items of the previous level's pairs without an event of this level."""
    if level == 0:
        return None
    size = log.items.size

    def keys(examples: Examples) -> np.ndarray:
        pairs = examples.pairs
        return pairs.users.astype(np.int64) * size + pairs.items

    previous = keys(log.train[log.objectives[level - 1]])
    current = keys(log.train[log.objectives[level]])
    only = np.setdiff1d(previous, current)
    return (only % size).astype(np.int32) if len(only) else None
