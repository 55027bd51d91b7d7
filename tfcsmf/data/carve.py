"""A test part carved from the training events of a log, to choose settings on.

A test set that settings were chosen on tells nothing about them any more. Where the
validation pairs of a run are too few to tell two settings apart, a larger part of its
training events can be held out instead, and the test part stays unseen.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tfcsmf.config import Columns
from tfcsmf.errors import DataError, nearest

_SEED = 7


def carve_test(
    events: pl.DataFrame, take: Mapping[str, int], columns: Columns | None = None
) -> pl.DataFrame:
    """Holds out training events of items that the user met in no other way.

    Held-out pairs are unseen: of the events named, none but the held-out one has the
    pair of user and item. A user keeps at least one such pair of every event. Which
    pairs are taken depends on their ids alone.

    Args:
      events: a log. Rows whose split is not `train` are left out first; without a
        split column all rows are training events.
      take: most pairs per user to hold out, by event.
      columns: names of the columns.

    Returns:
      The training rows in their order, with the held-out ones marked `test` in the
      split column.

    Raises:
      DataError: if a column is missing, an event does not occur or nothing could be
        held out.

    Example:
      >>> log = pl.DataFrame({
      ...     "user_id": ["u"] * 4, "item_id": ["a", "b", "c", "c"],
      ...     "event": ["view", "view", "view", "buy"],
      ... })
      >>> carve_test(log, {"view": 1})["split"].value_counts(sort=True).rows()
      [('train', 3), ('test', 1)]
    """
    names = columns or Columns()
    user, item, event, split = names.user_id, names.item_id, names.event, names.split
    missing = {user, item, event} - set(events.columns)
    if missing:
        raise DataError(
            f"The log should have the columns {user!r}, {item!r} and {event!r}. "
            f"Received: {events.columns}."
        )
    if split in events.columns:
        events = events.filter(pl.col(split) == "train")
    else:
        events = events.with_columns(pl.lit("train").alias(split))
    known = events[event].cast(pl.String).unique().to_list()
    for name in take:
        if name not in known:
            raise DataError(
                f"Events to hold out should occur in the training rows, which have "
                f"{sorted(known)}. Received: {name!r}.{nearest(name, known)}"
            )
    pairs = (
        events.group_by(user, item)
        .agg(pl.col(event).cast(pl.String).unique().sort().str.join("+").alias("by"))
        .with_columns(order=pl.concat_str(user, item).hash(_SEED))
        .sort("order")
    )
    chosen = []
    for name, most in take.items():
        alone = pairs.filter(pl.col("by") == name).with_columns(
            place=pl.int_range(pl.len()).over(user), count=pl.len().over(user)
        )
        kept = alone.filter((pl.col("place") < most) & (pl.col("count") > most))
        chosen.append(kept.select(user, item, pl.col("by").alias(event)))
    held_out = pl.concat(chosen).with_columns(pl.lit("test").alias("held_out"))
    if held_out.is_empty():
        raise DataError(
            "A test part should have at least one pair that a user met by one event "
            f"alone, of a user with more of them. Received: none for {dict(take)}. "
            "Take fewer per user, or use a larger log."
        )
    return (
        events.with_columns(pl.col(event).cast(pl.String))
        .join(held_out, on=[user, item, event], how="left", maintain_order="left")
        .with_columns(pl.coalesce("held_out", split).alias(split))
        .drop("held_out")
    )
