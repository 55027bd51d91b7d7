"""Turns a log of names into arrays of codes, and codes into positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from tfcsmf.data.event_source import categories
from tfcsmf.data.lists import SortedLog, distinct_sorted
from tfcsmf.data.log import RawLog
from tfcsmf.data.rows import NO_TIME
from tfcsmf.data.splits import SPLIT_CODES, CodedLog, stable_keys


def event_names(
    events: pl.DataFrame, objectives: Sequence[str], histories: Sequence[str]
) -> list[str]:
    """All event names; codes are indices, the objectives come first."""
    present = categories(events["event"]).to_list()
    return list(dict.fromkeys([*objectives, *histories, *present]))


def all_ids(
    events: pl.DataFrame,
    table: pl.DataFrame | None,
    key: str,
    trained: Sequence[str] | None,
) -> np.ndarray:
    """Sorted distinct ids of the log, its side table and the schema."""
    parts = [categories(events[key]).alias(key)]
    if table is not None:
        parts.append(table[key])
    if trained:
        parts.append(pl.Series(key, trained, dtype=pl.String))
    ids = pl.concat([part.unique() for part in parts]).unique().sort()
    return ids.to_numpy().astype(object)


def _codes(values: pl.Series, names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Index of every value of an Enum, or text, among distinct names, int32 [n]."""
    if values.dtype == pl.Enum:
        return _codes(categories(values), names)[values.to_physical().to_numpy()]
    table = pl.DataFrame(
        {
            "value": pl.Series(names, dtype=pl.String),
            "code": np.arange(len(names), dtype=np.int32),
        }
    )
    left = values.alias("value").to_frame()
    joined = left.join(table, on="value", how="left", maintain_order="left")
    return joined["code"].to_numpy()


def code_log(
    raw: RawLog,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    names: Sequence[str],
    num_objectives: int,
) -> CodedLog:
    """Codes every column: ids by their sorted place, events by that in `names`."""
    events = raw.events
    split = None
    if "split" in events.columns:
        codes = categories(events["split"]).replace_strict(
            SPLIT_CODES, return_dtype=pl.Int8
        )
        split = codes.to_numpy()[events["split"].to_physical().to_numpy()]
    return CodedLog(
        users=_codes(events["user_id"], user_ids),
        items=_codes(events["item_id"], item_ids),
        events=_codes(events["event"], names),
        times=events["time"].to_numpy() if "time" in events.columns else None,
        split=split,
        num_objectives=num_objectives,
        keys=(stable_keys(user_ids), stable_keys(item_ids), stable_keys(names)),
    )


def order_entities(
    codes: np.ndarray,
    ids: np.ndarray,
    min_count: int,
    trained: Sequence[str] | None,
) -> tuple[np.ndarray, int]:
    """Order of the entities: trained ones first, then by frequency, then by id.

    Args:
      codes: code of the entity of every training event.
      ids: sorted ids; a code is an index.
      min_count: fewest events of a trained entity.
      trained: fixes the trained entities and their order.

    Returns:
      Codes in order of position, and the number of trained entities.
    """
    counts = np.bincount(codes, minlength=len(ids))
    order = np.argsort(-counts, kind="stable")
    if trained is None:
        return order, int((counts >= min_count).sum())
    first = _codes(pl.Series(trained, dtype=pl.String), ids)
    return np.concatenate([first, order[~np.isin(order, first)]]), len(first)


def sort_log(
    log: CodedLog,
    part: np.ndarray,
    user_order: np.ndarray,
    item_order: np.ndarray,
    items_trained: int,
) -> SortedLog:
    """Replaces codes by positions and sorts by user, then time, then file order."""
    users = np.argsort(user_order).astype(np.int32)[log.users]
    items = np.argsort(item_order).astype(np.int32)[log.items]
    if log.times is None:
        order = np.argsort(users, kind="stable")
        times, ranks = np.full(len(users), NO_TIME, np.int64), None
    else:
        order = np.lexsort((log.times, users))
        times = log.times[order]
        # Not `np.unique`, which takes four arrays of this size more.
        ranks = np.searchsorted(distinct_sorted(times), times)
    return SortedLog(
        users=users[order],
        items=items[order],
        events=log.events[order],
        times=times,
        ranks=ranks,
        part=part[order],
        num_users=len(user_order),
        num_items=len(item_order),
        trained_items=items_trained,
    )
