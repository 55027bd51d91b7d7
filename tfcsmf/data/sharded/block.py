"""The users of one shard as training and evaluation read them.

A shard is a file of one record, a `tf.train.Example` whose features are the bytes of
flat arrays in little-endian order. Numbers of users count within the shard, ends of
histories within the user's own list, so shards can be put together in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data import splits
from tfcsmf.data.lists import (
    SortedLog,
    build_evaluation,
    build_histories,
    distinct_lists,
    distinct_sorted,
    history_ends,
)
from tfcsmf.data.prepared import Csr, EvaluationSet, Examples, Histories, Pairs
from tfcsmf.data.query_rows import group_examples
from tfcsmf.data.rows import NO_TIME
from tfcsmf.data.sharded.bucket import Bucket
from tfcsmf.data.sharded.plan import Plan, split_bucket

Arrays = dict[str, np.ndarray]


def dtype_of(name: str) -> Any:
    """Returns the type of an array by its name."""
    return np.int64 if name.endswith("/times") else np.int32


def build_block(bucket: Bucket, plan: Plan, timed: bool) -> tuple[Arrays, Arrays]:
    """Prepares the users of a shard.

    Args:
      bucket: their events.
      plan: with the decisions of all rounds.
      timed: histories say when their entries happened.

    Returns:
      Arrays for training:

      - `users` [n], positions;
      - `history/<h>/lengths` [n], `/items` and, if wanted, `/times`, by number of the
        history event;
      - `rows/<s>/users` [R], `/ends` [R, H], `/lengths` [R], `/items`: the rows of
        `QueryRows`, by number of the objective;
      - `known/<s>/lengths` [n], `/items`;

      and for evaluation, `<part>` being "validation" or "test":

      - `<part>/users` [q], positions of all users with queries, and
        `<part>/history/<h>/...` of them;
      - `<part>/<s>/users`, numbers among these, `/ends`, and lists `targets`, `seen`
        and `met`, `/lengths` and `/items` each;
      - `counts` [S, 6]: see `COUNTS`.
    """
    log = _sorted_log(bucket, plan)
    positions = np.sort(plan.users.positions_of(bucket.user_ids))  # type: ignore[union-attr]
    codes = plan.history_codes
    train = log.part == splits.TRAIN
    known = train | (log.part == splits.VALID) | (log.part == splits.HELD)
    histories = build_histories(log, plan.histories, codes, train, timed)
    later = build_histories(log, plan.histories, codes, known, timed)
    arrays: Arrays = {"users": positions} | _history_arrays("", histories, None)
    validation: list[EvaluationSet] = []
    test: list[EvaluationSet] = []
    counts = []
    for code in range(len(plan.objectives)):
        mine = log.events == code
        rows = np.flatnonzero(mine & train)
        ranks = None if log.ranks is None else log.ranks[rows]
        ends = history_ends(log, codes, train, log.users[rows], ranks)
        pairs = Pairs(log.users[rows], log.items[rows], log.times[rows])
        grouped = group_examples(Examples(pairs, ends))
        arrays |= {
            f"rows/{code}/users": grouped.users,
            f"rows/{code}/ends": _relative(
                grouped.history_end, histories, grouped.users
            ),
            f"rows/{code}/lengths": np.diff(grouped.offsets),
            f"rows/{code}/items": grouped.items,
        }
        positives = distinct_lists(
            pairs.users, pairs.items, log.num_users, log.num_items
        )
        arrays |= _list_arrays(f"known/{code}", positives)
        held_out = np.flatnonzero(mine & (log.part == splits.VALID))
        chosen = plan.validation_users.get(code)
        queries = held_out
        if chosen is not None:
            queries = held_out[np.isin(positions[log.users[held_out]], chosen)]
        validation.append(build_evaluation(log, code, queries, train, codes))
        targets = np.flatnonzero(mine & (log.part == splits.TEST))
        test.append(build_evaluation(log, code, targets, known, codes))
        found = test[-1].targets.items
        counts.append(
            [
                len(rows),
                len(held_out),
                len(validation[-1].users),
                len(targets),
                len(test[-1].users),
                len(found),
                int((found >= log.trained_items).sum()),
            ]
        )
    evaluation: Arrays = {"counts": np.array(counts)}
    evaluation |= _evaluation_arrays("validation", validation, histories, positions)
    evaluation |= _evaluation_arrays("test", test, later, positions)
    return arrays, evaluation


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
    name: str,
    sets: Sequence[EvaluationSet],
    histories: Histories,
    positions: np.ndarray,
) -> Arrays:
    users = np.unique(np.concatenate([part.users for part in sets]))
    arrays = {f"{name}/users": positions[users]}
    arrays |= _history_arrays(f"{name}/", histories, users)
    for code, part in enumerate(sets):
        arrays[f"{name}/{code}/users"] = np.searchsorted(users, part.users)
        ends = _relative(part.history_end, histories, part.users)
        arrays[f"{name}/{code}/ends"] = ends
        for key in ("targets", "seen", "met"):
            arrays |= _list_arrays(f"{name}/{code}/{key}", getattr(part, key))
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
