"""All events of the users of one shard, coded by names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tfcsmf.data.splits import CodedLog, stable_keys


@dataclass(frozen=True)
class Bucket:
    """Events of some users in the order of the log, without repeated rows.

    Attributes:
      number: of the shard.
      events: `row`, `user_id`, `item_id`, `event` (codes), `split` and `time` where
        known.
      user_ids: distinct, sorted; a code is an index.
      item_ids: likewise.
      names: of the events, likewise.
      rows_read: with the repeated ones.
    """

    number: int
    events: pl.DataFrame
    user_ids: pl.Series
    item_ids: pl.Series
    names: tuple[str, ...]
    rows_read: int

    def coded(self, names: Sequence[str], num_objectives: int) -> CodedLog:
        """Returns the events for splitting.

        Args:
          names: of all events of the log, the objectives first.
          num_objectives: how many these are.
        """
        own = np.array([names.index(name) for name in self.names], np.int32)
        columns = self.events.columns
        return CodedLog(
            users=self.events["user_id"].to_numpy(),
            items=self.events["item_id"].to_numpy(),
            events=own[self.events["event"].to_numpy()],
            times=self.events["time"].to_numpy() if "time" in columns else None,
            split=self.events["split"].to_numpy() if "split" in columns else None,
            num_objectives=num_objectives,
            keys=(
                stable_keys(self.user_ids),
                stable_keys(self.item_ids),
                stable_keys(names),
            ),
        )


def make_bucket(number: int, frames: Sequence[pl.DataFrame]) -> Bucket:
    """Puts the events of a shard together.

    Args:
      number: of the shard.
      frames: what `read_piece` yielded of its users, in any order; at least one.
    """
    frame = pl.concat(frames).sort("row")
    columns = [name for name in frame.columns if name != "row"]
    distinct = frame.unique(columns, keep="first", maintain_order=True)
    coded, ids = {}, {}
    for name in ("user_id", "item_id", "event"):
        ids[name] = distinct[name].unique().sort()
        codes = distinct[name].cast(pl.Enum(ids[name])).to_physical()
        coded[name] = codes.cast(pl.Int32)
    return Bucket(
        number,
        distinct.with_columns(**coded),
        ids["user_id"],
        ids["item_id"],
        tuple(ids["event"]),
        frame.height,
    )
