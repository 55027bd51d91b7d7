"""The users of one shard as training and evaluation read them.

A shard is two files of records, `tf.train.Example`s whose features are the bytes of
flat arrays in little-endian order: one record for training, one each for validation and
test queries. Numbers of users count within the shard, ends of
histories within the user's own list, so shards can be put together in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data import splits
from tfcsmf.data.funnel import joined_with_later
from tfcsmf.data.lists import (
    SortedLog,
    build_evaluation,
    build_histories,
    distinct_lists,
    distinct_sorted,
    history_ends,
    pair_keys,
)
from tfcsmf.data.prepared import Csr, EvaluationSet, Examples, Histories, Pairs
from tfcsmf.data.query_rows import QueryRows, group_examples
from tfcsmf.data.rows import NO_TIME
from tfcsmf.data.sharded.bucket import Bucket
from tfcsmf.data.sharded.plan import Plan, split_bucket

Arrays = dict[str, np.ndarray]


def dtype_of(name: str) -> Any:
    """Returns the type of an array by its name."""
    return np.int64 if name.endswith("/times") else np.int32


@dataclass(frozen=True)
class Block:
    """The users of a shard, prepared.

    Attributes:
      train: for training:

        - `users` [n], positions;
        - `history/<h>/lengths` [n], `/items` and, if wanted, `/times`, by number of the
          history event;
        - `rows/<s>/users` [R], `/ends` [R, H], `/lengths` [R], `/items`: the rows of
          `QueryRows`, by number of the objective;
        - `known/<s>/lengths` [n], `/items`.
      evaluation: for validation, and for test queries:

        - `users` [q], positions of all users with queries, and `history/<h>/...` of
          them;
        - `<s>/users`, numbers among these, `/ends`, and lists `targets`, `seen` and
          `met`, `/lengths` and `/items` each.
      counts: int [S, 7]; see `COUNTS`.
      items: what there is to count in a whole log, as items:

        - `examples/<s>`, of training events;
        - `targets/<s>`, of the rows' positives;
        - `popularity/<s>`, of distinct pairs in training and validation;
        - `hard/<s>`, of distinct pairs of the level before without this one's event.
      later: examples of the first objective, with those of later events.
    """

    train: Arrays
    evaluation: tuple[Arrays, Arrays]
    counts: np.ndarray
    items: Arrays
    later: int


def build_block(bucket: Bucket, plan: Plan, timed: bool, with_later: bool) -> Block:
    """Prepares the users of a shard.

    Args:
      bucket: their events.
      plan: with the decisions of all rounds.
      timed: histories say when their entries happened.
      with_later: pairs of later objectives are positives of the first one too.
    """
    log = _sorted_log(bucket, plan)
    positions = np.sort(plan.users.positions_of(bucket.user_ids))  # type: ignore[union-attr]
    codes = plan.history_codes
    is_train = log.part == splits.TRAIN
    is_known = is_train | (log.part == splits.VALID) | (log.part == splits.HELD)
    histories = build_histories(log, plan.histories, codes, is_train, timed)
    later = build_histories(log, plan.histories, codes, is_known, timed)
    examples, known = _examples(log, len(plan.objectives), codes)
    items: Arrays = {
        f"examples/{code}": part.pairs.items for code, part in enumerate(examples)
    }
    if with_later and len(examples) > 1:
        examples[0], known[0] = joined_with_later(examples, known, log.num_items)
    train: Arrays = {"users": positions} | _history_arrays("", histories, None)
    validation: list[EvaluationSet] = []
    test: list[EvaluationSet] = []
    table = []
    for code, name in enumerate(plan.objectives):
        rows = group_examples(examples[code], rows_per_user=plan.rows_per_user)
        train |= _row_arrays(f"rows/{code}", rows, histories)
        train |= _list_arrays(f"known/{code}", known[code])
        mine = log.events == code
        held_out = np.flatnonzero(mine & (log.part == splits.VALID))
        chosen = plan.validation_users.get(code)
        queries = held_out
        if chosen is not None:
            queries = held_out[np.isin(positions[log.users[held_out]], chosen)]
        validation.append(build_evaluation(log, code, queries, is_train, codes))
        targets = np.flatnonzero(mine & (log.part == splits.TEST))
        test.append(build_evaluation(log, code, targets, is_known, codes))
        found = test[-1].targets.items
        table.append(
            [
                len(items[f"examples/{code}"]),
                len(held_out),
                len(validation[-1].users),
                len(targets),
                len(test[-1].users),
                len(found),
                int((found >= log.trained_items).sum()),
            ]
        )
        items[f"targets/{code}"] = train[f"rows/{code}/items"]
        keys = pair_keys(later.lists.get(name, known[code]), log.num_items)
        items[f"popularity/{code}"] = distinct_sorted(keys) % log.num_items
        if code:
            below, own = (pair_keys(known[c], log.num_items) for c in (code - 1, code))
            items[f"hard/{code}"] = (
                np.setdiff1d(below, own, assume_unique=True) % log.num_items
            )
    return Block(
        train,
        (
            _evaluation_arrays(validation, histories, positions),
            _evaluation_arrays(test, later, positions),
        ),
        np.array(table),
        items,
        len(examples[0].pairs),
    )


def _examples(
    log: SortedLog, objectives: int, codes: Sequence[int]
) -> tuple[list[Examples], list[Csr]]:
    """Training examples of every objective, and the positives of every user."""
    train = log.part == splits.TRAIN
    examples, known = [], []
    for code in range(objectives):
        rows = np.flatnonzero((log.events == code) & train)
        ranks = None if log.ranks is None else log.ranks[rows]
        users, items = log.users[rows], log.items[rows]
        ends = history_ends(log, codes, train, users, ranks)
        examples.append(Examples(Pairs(users, items, log.times[rows]), ends))
        known.append(distinct_lists(users, items, log.num_users, log.num_items))
    return examples, known


# Columns of `counts`, as in the summary of a prepared log.
COUNTS = (
    *("train", "validation", "validation_queries", "test", "test_queries"),
    *("test_targets", "cold_test_targets"),
)


def _sorted_log(bucket: Bucket, plan: Plan) -> SortedLog:
    """Replaces codes by numbers in order of position, and sorts as `sort_log`."""
    users, items = plan.users, plan.items
    assert users is not None and items is not None  # the last round
    split = split_bucket(bucket, plan)
    log = split.log
    part = split.pairs.hide(split.part, split.taken)
    places = np.argsort(np.argsort(users.positions_of(bucket.user_ids)))
    numbers = places.astype(np.int32)[log.users]
    catalogue = items.positions_of(bucket.item_ids)[log.items]
    if log.times is None:
        order = np.argsort(numbers, kind="stable")
        times, ranks = np.full(len(numbers), NO_TIME, np.int64), None
    else:
        order = np.lexsort((log.times, numbers))
        times = log.times[order]
        ranks = np.searchsorted(distinct_sorted(times), times)
    return SortedLog(
        users=numbers[order],
        items=catalogue[order],
        events=log.events[order],
        times=times,
        ranks=ranks,
        part=part[order],
        num_users=len(bucket.user_ids),
        num_items=len(items.ids),
        trained_items=items.trained,
    )


def _relative(ends: np.ndarray, histories: Histories, users: np.ndarray) -> np.ndarray:
    starts = [lists.offsets[users] for lists in histories.lists.values()]
    return ends - np.stack(starts, axis=1) if starts else ends


def _row_arrays(name: str, rows: QueryRows, histories: Histories) -> Arrays:
    return {
        f"{name}/users": rows.users,
        f"{name}/ends": _relative(rows.history_end, histories, rows.users),
        f"{name}/lengths": np.diff(rows.offsets),
        f"{name}/items": rows.items,
    }


def _list_arrays(name: str, lists: Csr) -> Arrays:
    return {f"{name}/lengths": np.diff(lists.offsets), f"{name}/items": lists.items}


def _history_arrays(
    prefix: str, histories: Histories, users: np.ndarray | None
) -> Arrays:
    """Lists of all users, or of some of them."""
    arrays: Arrays = {}
    for number, (event, lists) in enumerate(histories.lists.items()):
        name = f"{prefix}history/{number}"
        values = {"items": lists.items}
        if histories.times is not None:
            values["times"] = histories.times[event]
        lengths = np.diff(lists.offsets)
        if users is not None:
            wanted = np.zeros(len(lengths), bool)
            wanted[users] = True
            kept = np.repeat(wanted, lengths)
            values = {key: value[kept] for key, value in values.items()}
            lengths = lengths[wanted]
        arrays[f"{name}/lengths"] = lengths
        arrays |= {f"{name}/{key}": value for key, value in values.items()}
    return arrays


def _evaluation_arrays(
    sets: Sequence[EvaluationSet], histories: Histories, positions: np.ndarray
) -> Arrays:
    users = np.unique(np.concatenate([part.users for part in sets]))
    arrays = {"users": positions[users]} | _history_arrays("", histories, users)
    for code, part in enumerate(sets):
        arrays[f"{code}/users"] = np.searchsorted(users, part.users)
        ends = _relative(part.history_end, histories, part.users)
        arrays[f"{code}/ends"] = ends
        for key in ("targets", "seen", "met"):
            arrays |= _list_arrays(f"{code}/{key}", getattr(part, key))
    return arrays


def to_record(arrays: Arrays) -> bytes:
    """Returns arrays as the bytes of a `tf.train.Example`."""
    example = tf.train.Example()
    for name, values in sorted(arrays.items()):
        kind = np.dtype(dtype_of(name)).newbyteorder("<")
        data = np.ascontiguousarray(values, kind).tobytes()
        example.features.feature[name].bytes_list.value.append(data)
    return bytes(example.SerializeToString(deterministic=True))


def from_record(record: bytes) -> Arrays:
    """Returns the flat arrays that `to_record` wrote."""
    example = tf.train.Example.FromString(record)
    return {
        name: np.frombuffer(
            feature.bytes_list.value[0], np.dtype(dtype_of(name)).newbyteorder("<")
        )
        for name, feature in example.features.feature.items()
    }
