"""Training examples grouped by query: what one reading of the histories can teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import flat_ranges
from tfcsmf.data.prepared import Examples, Pairs
from tfcsmf.data.rows import NO_TIME


@dataclass(frozen=True)
class QueryRows:
    """One row per user, label and content of the histories, with all its positives.

    Examples of one user that happened at the same point of its histories have the
    same query vector. Where time is unknown these are all examples of a user; where it
    is known, some that follow each other may be made to share one.

    Attributes:
      users: int32 [R], user positions.
      history_end: int64 [R, H], as in `Examples`.
      labels: int32 [R]; see `group_examples`.
      offsets: int64 [R + 1].
      items: int32 [n], catalogue positions; row r has
        `items[offsets[r]:offsets[r + 1]]`, distinct and ascending, at least one.
      timed: histories end before the positives happened. Else they hold them, and
        those to be predicted have to be left out.
      weights: float32 [n], of the items; None for all alike.
    """

    users: np.ndarray
    history_end: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timed: bool
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def expected_targets(self, share: float) -> float:
        """Returns the mean number of targets of a row; see `choose_targets`."""
        return expected_targets(np.diff(self.offsets), share, self.timed)


def expected_targets(
    sizes: np.ndarray, share: float, timed: bool, weights: np.ndarray | None = None
) -> float:
    """Returns the mean number of targets of a row; see `TargetChooser`.

    Args:
      sizes: int [n], positives of rows.
      share: as in `TargetChooser`.
      timed: as in `QueryRows`.
      weights: int [n], number of rows of every size; default 1.
    """
    sizes = sizes.astype(np.float64)
    if not timed:
        # A row whose draws all fail gives one.
        sizes = share * sizes + (1.0 - share) ** sizes
    return float(np.average(sizes, weights=weights))


def group_examples(
    examples: Examples,
    labels: np.ndarray | None = None,
    rows_per_user: int | None = None,
) -> QueryRows:
    """Groups examples by user, label and histories.

    Args:
      examples: at least one; repeated ones count once.
      labels: int32 [n]; examples of different labels never share a row. None is 0
        for all.
      rows_per_user: where time is known, a user gets at most so many rows of a label.
        One with examples at n times has up to n / rows_per_user times that follow
        each other share the histories of the first of them. None parts all.

    Example:
      >>> from tfcsmf.data.prepared import Pairs
      >>> users, items = np.array([1, 0, 1], np.int32), np.array([5, 3, 2], np.int32)
      >>> ends = np.array([[4], [1], [4]])
      >>> rows = group_examples(Examples(Pairs(users, items, np.zeros(3)), ends))
      >>> rows.users.tolist(), rows.offsets.tolist(), rows.items.tolist()
      ([0, 1], [0, 1, 3], [3, 2, 5])
    """
    pairs, ends = examples.pairs, examples.history_end
    if labels is None:
        labels = np.zeros(len(pairs), np.int32)
    timed = bool((pairs.times != NO_TIME).any())
    if timed and rows_per_user is not None:
        ends = ends[_first_of_window(pairs, labels, rows_per_user)]
    keys = (pairs.items, *ends.T[::-1], labels, pairs.users)  # the last sorts first
    order = np.lexsort(keys)

    def changes(columns: tuple[np.ndarray, ...]) -> np.ndarray:
        first = np.ones(len(order), bool)
        first[1:] = False
        for column in columns:
            ordered = column[order]
            first[1:] |= ordered[1:] != ordered[:-1]
        return first

    order = order[changes(keys)]
    starts = np.flatnonzero(changes(keys[1:]))
    chosen = order[starts]
    return QueryRows(
        pairs.users[chosen],
        ends[chosen],
        labels[chosen].astype(np.int32),
        np.append(starts, len(order)).astype(np.int64),
        pairs.items[order],
        timed=timed,
        weights=None if examples.weights is None else examples.weights[order],
    )


def _first_of_window(pairs: Pairs, labels: np.ndarray, windows: int) -> np.ndarray:
    """Returns for every example the first one of its window, of so many per user."""
    order = np.lexsort((pairs.times, labels, pairs.users))
    users, labels, times = pairs.users[order], labels[order], pairs.times[order]

    def begins(*columns: np.ndarray) -> np.ndarray:
        """Returns where a run of equal values begins, bool."""
        new = np.ones(len(order), bool)
        new[1:] = False
        for column in columns:
            new[1:] |= column[1:] != column[:-1]
        return new

    # The distinct times of every user and label, numbered from 0.
    user = np.cumsum(begins(users, labels)) - 1
    moment = np.cumsum(begins(users, labels, times)) - 1
    starts = np.flatnonzero(begins(user))
    moments = np.diff(np.append(moment[starts], moment[-1] + 1))
    window = (moment - moment[starts][user]) // -(-moments // windows)[user]
    first = np.empty(len(order), np.int64)
    leads = np.where(begins(user, window), np.arange(len(order)), 0)
    first[order] = order[np.maximum.accumulate(leads)]
    return first


class TargetChooser:
    """Chooses what is predicted from what, anew in every batch.

    Where time is known, all positives of a row are targets. Where it is not, a
    random part of them is, and the rest stays in the histories to predict them from.
    Targets never stay in the history of their own event, nor, where time is unknown,
    in those of later objectives: what is viewed has not been bought yet. That of
    another event shows some of them: what a user has carted is bought more often,
    which a model cannot learn from histories without any target; and with all of them
    it would learn nothing else (our reading).

    Args:
      rows: the examples.
      share: of a row's positives, where time is unknown; a row gives at least one.
      visible: share of the targets that histories of other events show.
      events: history event of each label, whose histories hide the label's targets.
      objectives: events in cascade order.
    """

    def __init__(
        self,
        rows: QueryRows,
        share: float,
        visible: float,
        events: tuple[str, ...],
        objectives: tuple[str, ...] = (),
    ) -> None:
        self.share, self.visible = share, visible
        self.timed = rows.timed
        self._hiding = {
            event: [self._hides(event, own, objectives) for own in events]
            for event in dict.fromkeys((*events, *objectives))
        }
        self._offsets = tf.convert_to_tensor(rows.offsets)
        self._items = tf.convert_to_tensor(rows.items)
        self._labels = tf.convert_to_tensor(rows.labels)

    def _hides(self, event: str, own: str, objectives: tuple[str, ...]) -> bool:
        """Returns whether an event's histories show no target of the event `own`."""
        if self.timed or not {event, own} <= set(objectives):
            return event == own
        return objectives.index(event) >= objectives.index(own)

    def __call__(
        self, rows: tf.Tensor, num_items: int, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, HiddenKeys]:
        """Chooses the targets of rows.

        Args:
          rows: int [B], row numbers.
          num_items: catalogue size.
          seed: int [2], of a stateless generator.

        Returns:
          Owners int64 [n], numbers in `rows`, ascending; slots int64 [n], numbers in
          `QueryRows.items`; and what each event's history leaves out.
        """
        starts = tf.gather(self._offsets, rows)
        owners, slots = flat_ranges(starts, tf.gather(self._offsets, rows + 1) - starts)
        if not self.timed and self.share < 1.0:
            draws = tf.random.stateless_uniform(tf.shape(slots), seed)
            least = tf.gather(tf.math.segment_min(draws, owners), owners)
            chosen = (draws < self.share) | tf.equal(draws, least)
            owners = tf.boolean_mask(owners, chosen)
            slots = tf.boolean_mask(slots, chosen)
        items = tf.gather(self._items, slots)
        keys = owners * num_items + tf.cast(items, tf.int64)  # ascending
        shown = tf.random.stateless_uniform(tf.shape(keys), seed + [0, 1])
        unseen = shown >= self.visible
        labels = tf.gather(tf.gather(self._labels, rows), owners)
        own = {
            event: tf.boolean_mask(keys, unseen | tf.gather(hides, labels))
            for event, hides in self._hiding.items()
        }
        return owners, slots, HiddenKeys(num_items, own, tf.boolean_mask(keys, unseen))


@dataclass(frozen=True)
class HiddenKeys:
    """What histories leave out, as `row * num_items + item`, ascending.

    Attributes:
      num_items: catalogue size.
      own: int64 [any] by event.
      others: int64 [any], of the events not in `own`.
    """

    num_items: int
    own: Mapping[str, tf.Tensor]
    others: tf.Tensor

    def keeps(self, event: str, owners: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Returns which entries of an event's histories stay, bool [n].

        Args:
          event: of the histories.
          owners: int64 [n], the row of every entry.
          positions: int32 [n], its item.
        """
        hidden = self.own.get(event, self.others)
        # One more, so that there is something to compare the largest with.
        hidden = tf.concat([hidden, [tf.int64.max]], axis=0)
        keys = owners * self.num_items + tf.cast(positions, tf.int64)
        place = tf.searchsorted(hidden, keys)
        return tf.not_equal(tf.gather(hidden, place), keys)
