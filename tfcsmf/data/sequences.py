"""One chronological sequence per user over all history events."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.prepared import EntityTable, Histories
from tfcsmf.data.rows import MISSING, NUM_RESERVED
from tfcsmf.errors import DataError

# Rows of a table of time gaps: powers of two of whatever unit the time has.
NUM_GAPS = NUM_RESERVED + 64


@dataclass(frozen=True)
class Sequences:
    """What users did, oldest first, whatever the event.

    Attributes:
      offsets: int64 [U + 1]; entries of user u are `offsets[u]` to `offsets[u + 1]`.
      items: int32 [n], catalogue positions.
      events: int32 [n], rows of event types, in the order of `Histories.lists`.
      gaps: int32 [n], rows of the time since the user's entry before, by powers of
        two; `MISSING` for the first one.
      num_events: rows of a table of event types; 0 if there is one type only, which
        would tell nothing.
      num_gaps: rows of a table of gaps; 0 if all known gaps are in one row, as where
        time is a rank, or if there is no time.
    """

    offsets: np.ndarray
    items: np.ndarray
    events: np.ndarray
    gaps: np.ndarray
    num_events: int
    num_gaps: int

    @property
    def lengths(self) -> np.ndarray:
        """Entries of every user, int64 [U]."""
        return np.diff(self.offsets)


def merge_histories(histories: Histories) -> Sequences:
    """Merges the lists of all events into one sequence per user.

    What happened at the same time is in the order of the events, as a request would
    have it, and then of the file. Where no time is known all is in the order of the
    file.

    Raises:
      DataError: if the histories do not say in which order.
    """
    order = histories.order
    if order is None:
        raise DataError(
            "Sequences need histories with an order. Received histories without; "
            "take those of `prepare`."
        )
    items = np.zeros(len(order.events), np.int32)
    lengths = np.zeros(0, np.int64)
    for number, lists in enumerate(histories.lists.values()):
        # Both are sorted by user and time, so the entries correspond in order.
        items[order.events == number] = lists.items
        own = np.diff(lists.offsets)
        lengths = own if number == 0 else lengths + own
    gaps = order.gaps.astype(np.int32)
    events = order.events.astype(np.int32)
    known = np.unique(gaps[gaps > MISSING])
    if len(known) > 1:
        # Entries without a gap before them belong to the one before.
        moment = np.cumsum(gaps != NUM_RESERVED)
        by_event = np.lexsort((events, moment))
        items, events = items[by_event], events[by_event]
    return Sequences(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=items,
        events=events + NUM_RESERVED,
        gaps=gaps,
        num_events=len(histories.lists) + NUM_RESERVED
        if len(histories.lists) > 1
        else 0,
        num_gaps=NUM_GAPS if len(known) > 1 else 0,
    )


def only_items(sequences: Sequences, num_items: int) -> Sequences:
    """Leaves out the entries of items from position `num_items` on.

    Gaps stay as they are: the time since the user's entry before, left out or not.

    Example:
      >>> offsets, column = np.array([0, 2, 4]), np.array([5, 1, 0, 7], np.int32)
      >>> left = only_items(Sequences(offsets, column, column, column, 0, 0), 5)
      >>> left.items.tolist(), left.offsets.tolist()
      ([1, 0], [0, 1, 2])
    """
    kept = sequences.items < num_items
    before = np.concatenate([[0], np.cumsum(kept)])
    return replace(
        sequences,
        offsets=before[sequences.offsets],
        items=sequences.items[kept],
        events=sequences.events[kept],
        gaps=sequences.gaps[kept],
    )


def merged_end(history_end: np.ndarray) -> np.ndarray:
    """Returns where queries' sequences end, from where their histories do.

    Ends are absolute, so that of the merged sequence is their sum.

    Args:
      history_end: int64 [q, H], see `tfcsmf.data.prepared.Examples`.

    Returns:
      int64 [q], absolute ends (exclusive) in `Sequences.items`.
    """
    return history_end.sum(axis=1)


def value_codes(table: EntityTable, encoders: tuple[FeatureEncoder, ...]) -> np.ndarray:
    """Numbers the distinct values of every feature, and the ids.

    Args:
      table: the catalogue.
      encoders: those of its features that are wanted.

    Returns:
      int32 [C, 1 + features], equal in a column where the value is; -1 where it is
      missing. The first column is the position itself.
    """
    columns = [np.arange(table.size, dtype=np.int32)]
    for encoder in encoders:
        values = table.features[encoder.name]
        flat = values.reshape(table.size, -1)
        codes = np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)
        missing = (
            flat[:, -1] == 1 if encoder.kind == "vector" else flat[:, 0] == MISSING
        )
        columns.append(np.where(missing, -1, codes).astype(np.int32))
    return np.stack(columns, axis=1)
