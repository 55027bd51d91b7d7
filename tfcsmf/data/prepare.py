"""Data preparation: from a configuration to the arrays training works on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tfcsmf.config import Config, DataConfig
from tfcsmf.data import splits
from tfcsmf.data.carving import carve
from tfcsmf.data.coding import (
    all_ids,
    code_log,
    event_names,
    order_entities,
    sort_log,
)
from tfcsmf.data.hashing import bucket_rows
from tfcsmf.data.kinds import check_ignored, encode_table, fit_encoders
from tfcsmf.data.lists import (
    SortedLog,
    build_evaluation,
    build_histories,
    distinct_lists,
    history_ends,
)
from tfcsmf.data.log import load_log
from tfcsmf.data.prepared import (
    Csr,
    EntityTable,
    EvaluationSet,
    Examples,
    Pairs,
    PreparedLog,
)
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.data.schema import Schema, load_schema
from tfcsmf.errors import DataError

_LOG = logging.getLogger(__name__)
_QUERIES = 3  # distinguishes this use of the seed from those in `splits`


def prepare(config: Config, schema: Mapping[str, Any] | None = None) -> PreparedLog:
    """Reads, checks, splits and encodes the log a configuration names.

    Args:
      config: the configuration; `data`, `simulator`, `cascade.objectives` and
        `seed` are used.
      schema: what `save_schema` returned for an earlier log: ids, feature
        encoders and history events are then taken from it, and ids it does not
        hold share the row `UNKNOWN`. Used to append an objective to a trained
        model.

    Returns:
      The prepared log. Training examples are sorted by user, then by time:
      shuffle them.

    Raises:
      DataError: if the log breaks a rule (`load_log`), a declared feature does not
        exist, or an objective has no training event.
    """
    fixed = None if schema is None else load_schema(schema)
    raw = load_log(config)
    data, objectives = config.data, config.cascade.objectives
    check_ignored([raw.items, raw.users], data.ignore)
    histories = objectives if data.history_events is None else data.history_events
    if fixed:
        histories = fixed.history_events
    histories = tuple(dict.fromkeys(histories))
    names = event_names(raw.events, objectives, histories)
    user_ids = all_ids(
        raw.events, raw.users, "user_id", fixed.user_ids if fixed else None
    )
    item_ids = all_ids(
        raw.events, raw.items, "item_id", fixed.item_ids if fixed else None
    )
    log = code_log(raw, user_ids, item_ids, names, len(objectives))
    # Millions of rows: every form of them is let go when the next one stands.
    raw = replace(raw, events=raw.events.clear())
    method, part, carved = _divide(config, log, raw.time_column)

    # An id trains where it is a target, items also where they are history.
    used = np.isin(log.events, [names.index(name) for name in histories])
    training = part == splits.TRAIN
    user_order, users_trained = order_entities(
        log.users[training & log.is_objective],
        user_ids,
        data.min_count,
        fixed.user_ids if fixed else None,
    )
    item_order, items_trained = order_entities(
        log.items[training & (log.is_objective | used)],
        item_ids,
        data.min_count,
        fixed.item_ids if fixed else None,
    )
    users, user_notes = _entities(
        raw.users, user_ids[user_order], users_trained, data, "users", fixed
    )
    met = np.unique(log.users[training & log.is_objective])
    users = with_buckets(users, len(met), data.hash_buckets, fixed)
    items, item_notes = _entities(
        raw.items, item_ids[item_order], items_trained, data, "items", fixed
    )
    summary = raw.summary | {
        "split": method,
        "validation_carved": carved,
        "history_length": fixed.history_length if fixed else data.history_length,
        "users": describe_entities(users),
        "items": describe_entities(items),
        "features_left_out": {"users": user_notes, "items": item_notes},
    }
    ordered = sort_log(log, part, user_order, item_order, items_trained)
    del log, part, used, training
    codes = [names.index(name) for name in histories]
    return _assemble(config, ordered, histories, codes, users, items, summary)


def _divide(
    config: Config, log: splits.CodedLog, time_column: str | None
) -> tuple[str, np.ndarray, list[str]]:
    """Splits the log; objectives without validation rows get some from training.

    Returns:
      The split method, the part of every event, and the carved objectives.
    """
    data, objectives = config.data, config.cascade.objectives
    method = splits.choose_method(data.split, log, time_column)
    part = splits.assign(log, method, data.test_share, config.seed)
    counts = splits.count_parts(log, part)
    check_training(counts, objectives, method)
    lacking = np.flatnonzero(counts[:, splits.VALID] == 0).tolist()
    part = carve(
        log, part, lacking, data.validation_users, data.validation_share, config.seed
    )
    return method, part, [objectives[code] for code in lacking]


def check_training(counts: np.ndarray, objectives: Sequence[str], method: str) -> None:
    """Checks that every objective has training events.

    Args:
      counts: see `splits.count_parts`.
      objectives: their names.
      method: how the log was split.

    Raises:
      DataError: if one has none.
    """
    for name, row in zip(objectives, counts, strict=True):
        if row[splits.TRAIN]:
            continue
        parts = {label: int(row[value]) for label, value in splits.SPLIT_CODES.items()}
        raise DataError(
            f"Every objective should have training events. Received none for {name!r} "
            f"with data.split={method} ({parts}). Leave the objective out, or choose "
            "another data.split or data.test_share."
        )


def check_catalogue(size: int) -> None:
    """Checks that a catalogue has items to tell apart.

    Raises:
      DataError: if it has one at most.
    """
    if size < 2:
        raise DataError(
            "A catalogue needs at least two items to tell apart. "
            f"Received: {size}. Give a log, or an item table, with more."
        )


def _entities(
    table: pl.DataFrame | None,
    ids: np.ndarray,
    trained: int,
    data: DataConfig,
    source: str,
    fixed: Schema | None,
) -> tuple[EntityTable, dict[str, str]]:
    """Encodes the features of ordered ids; says which columns were left out."""
    users = source == "users"
    if fixed is None:
        declared = data.query_features if users else data.candidate_features
        encoders, notes = fit_encoders(table, declared, data, source)
    else:
        encoders = fixed.user_encoders if users else fixed.item_encoders
        notes = {}
    features = encode_table(table, ids, encoders)
    return EntityTable(ids, trained, encoders, features), notes


def with_buckets(
    users: EntityTable, met: int, buckets: int, fixed: Schema | None = None
) -> EntityTable:
    """Gives users below the frequency cut rows that they share by a hash.

    Args:
      users: without such rows.
      met: users with a training event, which come first.
      buckets: how many rows at most; 0 gives none.
      fixed: schema of a trained model, whose rows are taken.
    """
    if fixed is not None:
        return replace(users, buckets=np.array(fixed.user_buckets, np.int32))
    if not buckets:
        return users
    rare = users.ids[users.trained : met]
    return replace(users, buckets=bucket_rows(rare, buckets, users.trained))


def describe_entities(table: EntityTable) -> dict[str, Any]:
    """Returns what the summary of a log says of users or items."""
    shared = {"shared_rows": table.num_rows - NUM_RESERVED - table.trained}
    return {
        "total": table.size,
        "trained": table.trained,
        **(shared if len(table.buckets) else {}),
        "features": {encoder.name: encoder.kind for encoder in table.encoders},
    }


def _assemble(
    config: Config,
    log: SortedLog,
    histories: tuple[str, ...],
    codes: Sequence[int],
    users: EntityTable,
    items: EntityTable,
    summary: dict[str, Any],
) -> PreparedLog:
    objectives = config.cascade.objectives
    train = log.part == splits.TRAIN
    known = train | (log.part == splits.VALID) | (log.part == splits.HELD)
    valid = [
        np.unique(log.users[(log.events == code) & (log.part == splits.VALID)])
        for code in range(len(objectives))
    ]
    chosen = chosen_users(valid, config.data.validation_users, config.seed)
    timed = wants_times(config)
    examples: dict[str, Examples] = {}
    positives: dict[str, Csr] = {}
    validation: dict[str, EvaluationSet] = {}
    test: dict[str, EvaluationSet] = {}
    counts: dict[str, dict[str, int]] = {}
    for code, name in enumerate(objectives):
        mine = log.events == code
        rows = np.flatnonzero(mine & train)
        ranks = None if log.ranks is None else log.ranks[rows]
        examples[name] = Examples(
            Pairs(log.users[rows], log.items[rows], log.times[rows]),
            history_ends(log, codes, train, log.users[rows], ranks),
        )
        positives[name] = distinct_lists(
            log.users[rows], log.items[rows], log.num_users, log.num_items
        )
        held_out = np.flatnonzero(mine & (log.part == splits.VALID))
        users_chosen = chosen[code]
        queries = held_out
        if users_chosen is not None:
            queries = held_out[np.isin(log.users[held_out], users_chosen)]
        validation[name] = build_evaluation(log, code, queries, train, codes)
        targets = np.flatnonzero(mine & (log.part == splits.TEST))
        test[name] = build_evaluation(log, code, targets, known, codes)
        cold = test[name].targets.items >= items.trained
        counts[name] = {
            "train": len(rows),
            "validation": len(held_out),
            "validation_queries": len(validation[name].users),
            "test": len(targets),
            "test_queries": len(test[name].users),
            "test_targets": len(cold),
            "cold_test_targets": int(cold.sum()),
        }
    warn_of_empty(counts)
    return PreparedLog(
        objectives=objectives,
        history_events=histories,
        users=users,
        items=items,
        train=examples,
        train_histories=build_histories(log, histories, codes, train, timed),
        validation=validation,
        test=test,
        test_histories=build_histories(log, histories, codes, known, timed),
        known=positives,
        summary=summary | {"events": counts},
    )


def wants_times(config: Config) -> bool:
    """Tells whether histories should say when their entries happened."""
    return config.towers.history_times and config.towers.query_encoder != "pooled"


def warn_of_empty(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Says which objectives cannot be evaluated, and what follows from it."""
    for name, count in counts.items():
        if not count["test"]:
            _LOG.warning(
                "The objective %r has no test events: its metrics will be missing. "
                "Give it test rows in the split column, or raise data.test_share.",
                name,
            )
        if not count["validation"]:
            _LOG.warning(
                "The objective %r has no validation pairs: its stage trains for all "
                "its epochs, without early stopping. More events, or a larger "
                "data.validation_share or data.validation_users, would give it some.",
                name,
            )


def chosen_users(
    valid: Sequence[np.ndarray], most: int, seed: int
) -> list[np.ndarray | None]:
    """Chooses whose validation pairs are used.

    Args:
      valid: of every objective, the sorted positions of users with such pairs.
      most: users per objective.
      seed: of the random choice.

    Returns:
      Chosen positions of every objective, `None` for all of them.
    """
    rng = np.random.default_rng([seed, _QUERIES])
    return [
        None if len(users) <= most else rng.choice(users, most, replace=False)
        for users in valid
    ]
