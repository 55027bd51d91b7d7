"""What data preparation hands to training and evaluation: plain arrays.

Two kinds of numbers name an entity, and they are never mixed:

- a *position* counts the rows of an entity table (users: `0..U-1`, catalogue:
  `0..C-1`);
- an *id row* is the row of the embedding table a position looks up. Rows below
  `NUM_RESERVED` are special; an entity without training events has the id row
  `UNKNOWN`. Positions are ordered so that trained entities come first:
  `id_row(p) = p + NUM_RESERVED if p < trained else UNKNOWN`. Users below the frequency
  cut may share further rows by a hash of their ids (`tfcsmf.data.hashing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.hashing import hash_ids
from tfcsmf.data.rows import NO_TIME as NO_TIME
from tfcsmf.data.rows import NUM_RESERVED, UNKNOWN


@dataclass(frozen=True)
class EntityTable:
    """All users, or all candidates (the catalogue).

    Attributes:
      ids: object array of strings [n], unique.
      trained: number of leading entities that have an id row of their own
        (those with at least `min_count` training events, most frequent first).
      encoders: one fitted encoder per feature, in schema order.
      features: encoded features by name; int32 [n], int32 [n, m] (padded with
        `PADDING`) or float32 [n, w], as the encoder's `kind` says.
      buckets: int32 [any], the id row of every hash bucket, which entities that are not
        trained share; none where they have the row `UNKNOWN`.
    """

    ids: np.ndarray
    trained: int
    encoders: tuple[FeatureEncoder, ...]
    features: dict[str, np.ndarray]
    buckets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def size(self) -> int:
        """Number of entities."""
        return len(self.ids)

    @property
    def id_rows(self) -> np.ndarray:
        """Embedding row of every position, int32 [n]."""
        rows = np.full(self.size, UNKNOWN, np.int32)
        rows[: self.trained] = np.arange(self.trained, dtype=np.int32) + NUM_RESERVED
        if len(self.buckets):
            places = hash_ids(self.ids[self.trained :], len(self.buckets))
            rows[self.trained :] = self.buckets[places]
        return rows

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table: the reserved ones, trained ids, and buckets."""
        own = self.trained + NUM_RESERVED
        return max(own, int(self.buckets.max(initial=0)) + 1)


@dataclass(frozen=True)
class Pairs:
    """Events of one kind, as (user, item, time) rows.

    Attributes:
      users: int32 [n], user positions.
      items: int32 [n], catalogue positions.
      times: int64 [n]; larger is later; `NO_TIME` everywhere if unknown.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Csr:
    """One list of catalogue positions per row.

    Attributes:
      offsets: int64 [rows + 1].
      items: int32 [offsets[-1]]; row r is `items[offsets[r]:offsets[r + 1]]`.
    """

    offsets: np.ndarray
    items: np.ndarray

    def row(self, index: int) -> np.ndarray:
        """Returns the list of one row."""
        return self.items[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class Examples:
    """Training examples of one objective.

    Attributes:
      pairs: the positives.
      history_end: int64 [n, H], one column per history event in schema order:
        absolute end (exclusive) in `Histories.lists[event].items` of what the
        user had done strictly before the example (everything the user did,
        where time is unknown). The target item itself is removed on the fly.
      weights: float32 [n], of the positives in the loss, 1 on average; None for all
        alike. The same for repeated pairs.
    """

    pairs: Pairs
    history_end: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Queries with held-out targets, one per user, for one objective.

    Attributes:
      users: int32 [q], user positions, distinct.
      targets: the held-out catalogue positions of each query, distinct per row.
      history_end: int64 [q, H]; as in `Examples`.
      seen: what each query's user did with *this* objective before, sorted and
        distinct (the mask of the standard protocol).
      met: items of any event of that user before (the mask of the unseen one).
    """

    users: np.ndarray
    targets: Csr
    history_end: np.ndarray
    seen: Csr
    met: Csr


@dataclass(frozen=True)
class Order:
    """How the lists of several events interleave; entries by user, then time.

    Attributes:
      events: int8 [n], which list the entry is the next one of.
      gaps: int8 [n], row of the time since the user's entry before; see
        `tfcsmf.data.sequences`.
    """

    events: np.ndarray
    gaps: np.ndarray


@dataclass(frozen=True)
class Histories:
    """Chronological item lists per user and history event.

    Attributes:
      lists: event name -> lists over user positions, oldest first.
      order: of all lists together; None if it is not known.
      times: event name -> int64 time of every entry of its lists, where they are known
        and asked for (`towers.history_times`).
    """

    lists: dict[str, Csr]
    order: Order | None = None
    times: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Whole:
    """What is known of a log of which only some users are in memory.

    Attributes:
      users: int32 [n], ascending positions of the users in memory: the others have no
        examples and, but for queries, no histories.
      examples: by objective, int64 [C], training events of every item.
      targets: by objective, int64 [C], how often an item is a positive of a training
        row; of the first one with later events as its positives, if these are used.
      popularity: by objective, int64 [C], distinct users with a training or validation
        event of every item.
    """

    users: np.ndarray
    examples: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    popularity: dict[str, np.ndarray]


@dataclass(frozen=True)
class PreparedLog:
    """Everything training and evaluation need.

    Attributes:
      objectives: in cascade order.
      history_events: events that give the query a history feature.
      users: the users.
      items: the catalogue.
      train: examples per objective, without the validation pairs.
      train_histories: histories the training examples point into; validation
        queries use them too.
      validation: per objective; pairs removed from all training events.
      test: per objective; may have no queries.
      test_histories: histories for test queries: training and validation events.
      known: per objective: sorted distinct training items of each user, the
        positives that must not be used as negatives.
      summary: counts and notes for the report (rows read, duplicates dropped, ...).
      whole: of the log that this is a part of (`tfcsmf.data.sharded.folder`); `None`
        where all of it is here.
      order: the objectives of the log that this one is cut from, in cascade order;
        its own by default. A cut of one objective still knows what comes after it.
    """

    objectives: tuple[str, ...]
    history_events: tuple[str, ...]
    users: EntityTable
    items: EntityTable
    train: dict[str, Examples]
    train_histories: Histories
    validation: dict[str, EvaluationSet]
    test: dict[str, EvaluationSet]
    test_histories: Histories
    known: dict[str, Csr]
    summary: dict[str, object]
    whole: Whole | None = None
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.order:
            object.__setattr__(self, "order", self.objectives)

    @property
    def users_here(self) -> np.ndarray:
        """Positions of the users whose examples and histories are here, ascending."""
        if self.whole is not None:
            return self.whole.users
        return np.arange(self.users.size, dtype=np.int32)

    def item_counts(self, objective: str) -> np.ndarray:
        """Returns the training events of every item of the whole log, int64 [C]."""
        if self.whole is not None:
            return self.whole.examples[objective]
        items = self.train[objective].pairs.items
        return np.bincount(items, minlength=self.items.size)
