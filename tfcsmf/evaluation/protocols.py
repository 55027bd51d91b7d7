"""The two evaluation protocols; both rank the whole catalogue.

- *standard*: what the user did with this objective before is masked. Where people
  act again on items they already met, it mostly measures re-ranking of those.
- *unseen*: targets the user already met in any event are dropped, and every item
  met is masked: the honest score of retrieval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfcsmf.config import EvaluationConfig
from tfcsmf.data.prepared import Csr, EvaluationSet
from tfcsmf.errors import ConfigError, nearest
from tfcsmf.evaluation.bootstrap import mean_interval
from tfcsmf.evaluation.lists import (
    contains,
    from_sorted_rows,
    row_numbers,
    take_rows,
)
from tfcsmf.evaluation.metrics import metric_names, per_user_metrics
from tfcsmf.evaluation.ranker import Ranker

ProtocolName = Literal["standard", "unseen"]
PROTOCOLS: tuple[ProtocolName, ...] = ("standard", "unseen")

_USERS_AT_ONCE = 65536  # bounds the memory of rankings, not of the metrics


@dataclass(frozen=True)
class ProtocolQueries:
    """What one protocol asks of a ranker.

    Attributes:
      rows: int64 [n], queries of the evaluation set that keep a target.
      targets: n lists: their targets.
      exclude: n lists: what must not be returned.
      dropped_targets: targets that the protocol's mask hides.
    """

    rows: np.ndarray
    targets: Csr
    exclude: Csr
    dropped_targets: int


def apply_protocol(
    evaluation_set: EvaluationSet, protocol: ProtocolName
) -> ProtocolQueries:
    """Returns the queries, targets and mask of one protocol.

    A target that is masked could never be retrieved; it is dropped and counted,
    and so is a user without a target left.

    Raises:
      ConfigError: for an unknown protocol.

    Example:
      >>> one = lambda *items: Csr(np.array([0, len(items)]), np.int32(items))
      >>> queries = EvaluationSet(
      ...     np.array([0]), one(4, 5), np.zeros((1, 0)), one(7), one(5, 7)
      ... )
      >>> apply_protocol(queries, "unseen").targets.items.tolist()
      [4]
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"A protocol should be one of {list(PROTOCOLS)}. "
            f"Received: {protocol!r}.{nearest(str(protocol), PROTOCOLS)}"
        )
    mask = evaluation_set.seen if protocol == "standard" else evaluation_set.met
    targets = evaluation_set.targets
    owners = row_numbers(targets)
    kept = ~contains(mask, owners, targets.items)
    reachable = from_sorted_rows(
        owners[kept], targets.items[kept], len(evaluation_set.users)
    )
    rows = np.flatnonzero(np.diff(reachable.offsets) > 0)
    return ProtocolQueries(
        rows, take_rows(reachable, rows), take_rows(mask, rows), int((~kept).sum())
    )


def user_metrics(
    ranker: Ranker,
    evaluation_set: EvaluationSet,
    objective: str,
    protocol: ProtocolName,
    ks: tuple[int, ...],
) -> tuple[dict[str, np.ndarray], ProtocolQueries]:
    """Returns metrics per user, float64 [n] by name, and who the users are.

    Two systems measured with it can be compared by `paired_difference`: rows and
    their order depend on the evaluation set and the protocol alone.
    """
    queries = apply_protocol(evaluation_set, protocol)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in metric_names(ks)}
    for start in range(0, len(queries.rows), _USERS_AT_ONCE):
        chunk = np.arange(start, min(start + _USERS_AT_ONCE, len(queries.rows)))
        exclude = take_rows(queries.exclude, chunk)
        rows = queries.rows[chunk]
        positions = ranker.rank(objective, evaluation_set, rows, exclude, max(ks))
        targets = take_rows(queries.targets, chunk)
        for name, values in per_user_metrics(positions, targets, ks).items():
            parts[name].append(values)
    return {
        name: np.concatenate([np.zeros(0), *values]) for name, values in parts.items()
    }, queries


def evaluate(
    ranker: Ranker,
    evaluation_set: EvaluationSet,
    objective: str,
    protocol: ProtocolName,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """Measures one ranker on one objective under one protocol.

    Args:
      ranker: the system.
      evaluation_set: queries and held-out targets of the objective.
      objective: passed on to the ranker.
      protocol: "standard" or "unseen".
      config: cut-offs and bootstrap samples.
      seed: of the bootstrap.

    Returns:
      Plain JSON values: `recall@k`, `hit_rate@k`, `ndcg@k` (mean over users), each
      with `<name>_ci95` [low, high], `users` and `dropped_targets`. Without a user
      the metrics are None.
    """
    return _summary(
        [_measure(ranker, evaluation_set, objective, protocol, config.ks)],
        config,
        seed,
    )


@dataclass(frozen=True)
class _Measured:
    """Metrics of some users.

    Attributes:
      users: int32 [n], their positions.
      values: float64 [n] by name.
      dropped_targets: as in `ProtocolQueries`.
    """

    users: np.ndarray
    values: dict[str, np.ndarray]
    dropped_targets: int


def _measure(
    ranker: Ranker,
    evaluation_set: EvaluationSet,
    objective: str,
    protocol: ProtocolName,
    ks: tuple[int, ...],
) -> _Measured:
    values, queries = user_metrics(ranker, evaluation_set, objective, protocol, ks)
    users = evaluation_set.users[queries.rows]
    return _Measured(users, values, queries.dropped_targets)


def _summary(
    parts: Sequence[_Measured], config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """Returns what `evaluate` says of users that were measured in parts."""
    users = np.concatenate([part.users for part in parts])
    order = np.argsort(users)  # the same draws, whatever the parts were
    values = {
        name: np.concatenate([part.values[name] for part in parts])[order]
        for name in metric_names(config.ks)
    }
    names = list(values)
    result: dict[str, Any] = {
        "users": len(users),
        "dropped_targets": sum(part.dropped_targets for part in parts),
    }
    if not len(users):
        return result | dict.fromkeys(_with_intervals(names))
    table = np.stack([values[name] for name in names], axis=1)  # [n, metrics]
    low, high = mean_interval(table, config.bootstrap_samples, seed)
    for column, name in enumerate(names):
        result[name] = float(table[:, column].mean())
        result[f"{name}_ci95"] = [float(low[column]), float(high[column])]
    return result


def evaluate_all(
    ranker: Ranker,
    evaluation_sets: Mapping[str, EvaluationSet],
    config: EvaluationConfig,
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measures one ranker on every objective under both protocols.

    Args:
      ranker: the system.
      evaluation_sets: by objective, in cascade order; `PreparedLog.test`.
      config: cut-offs and bootstrap samples.
      seed: of the bootstrap; equal seeds give equal draws for every system.

    Returns:
      The results of `evaluate` by protocol and objective.
    """
    return evaluate_parts([({"": ranker}, evaluation_sets)], config, seed)[""]


def evaluate_parts(
    parts: Iterable[tuple[Mapping[str, Ranker], Mapping[str, EvaluationSet]]],
    config: EvaluationConfig,
    seed: int,
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Measures rankers on some users after the others.

    Args:
      parts: rankers by name, the same names in all parts, and what they are asked of
        the part's users, by objective. No user is in two parts; at least one part.
      config: cut-offs and bootstrap samples.
      seed: of the bootstrap.

    Returns:
      The results of `evaluate_all` on all users together, by ranker.
    """
    found: dict[tuple[str, ProtocolName, str], list[_Measured]] = {}
    for rankers, sets in parts:
        for name, ranker in rankers.items():
            # Objectives outside: a ranker can then encode the queries of each one once.
            for objective, queries in sets.items():
                for protocol in PROTOCOLS:
                    measured = _measure(ranker, queries, objective, protocol, config.ks)
                    key = (name, protocol, objective)
                    found.setdefault(key, []).append(measured)
    results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for (name, protocol, objective), measured_parts in found.items():
        by_protocol = results.setdefault(name, {p: {} for p in PROTOCOLS})
        by_protocol[protocol][objective] = _summary(measured_parts, config, seed)
    return results


def mean_recall(
    ranker: Ranker,
    evaluation_set: EvaluationSet,
    objective: str,
    k: int,
    protocol: ProtocolName = "unseen",
) -> float | None:
    """Returns recall@k alone, without an interval; what stages stop early on.

    Returns:
      The mean over users, or None if no user has a target left.
    """
    values, _ = user_metrics(ranker, evaluation_set, objective, protocol, (k,))
    recall = values[f"recall@{k}"]
    return float(recall.mean()) if len(recall) else None


def _with_intervals(names: list[str]) -> list[str]:
    return [key for name in names for key in (name, f"{name}_ci95")]
