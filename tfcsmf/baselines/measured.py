"""Per-user results of one system and seed on disk, and their pooling over seeds."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.baselines.system import Cost, System
from tfcsmf.config import EvaluationConfig
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.evaluation.bootstrap import pooled_interval
from tfcsmf.evaluation.metrics import metric_names
from tfcsmf.evaluation.protocols import PROTOCOLS, user_metrics
from tfcsmf.files import write_atomic

Part = tuple[str, str]  # protocol, objective


@dataclass(frozen=True)
class Values:
    """Metrics of users.

    Attributes:
      users: str [n], user ids, distinct.
      table: float [n, metrics], columns as `metric_names` names them.
    """

    users: np.ndarray
    table: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What one system with one seed achieved and cost.

    Attributes:
      cost: of the system.
      parts: values by protocol and objective.
    """

    cost: Cost
    parts: dict[Part, Values]


def measure(system: System, log: PreparedLog, config: EvaluationConfig) -> Measured:
    """Ranks the catalogue for all test queries of a log under both protocols."""
    parts: dict[Part, Values] = {}
    for objective in log.objectives:
        queries = log.test[objective]
        ranker = system.ranker(objective)
        for protocol in PROTOCOLS:
            values, asked = user_metrics(
                ranker, queries, objective, protocol, config.ks
            )
            users = log.users.ids[queries.users[asked.rows]].astype(np.str_)
            table = np.stack(list(values.values()), axis=1)
            parts[protocol, objective] = Values(users, table)
    return Measured(system.cost(), parts)


def save(path: Path, measured: Measured) -> None:
    """Writes `<path>.npz` and then `<path>.json`; with the latter it is complete."""
    arrays: dict[str, Any] = {}
    for number, values in enumerate(measured.parts.values()):
        arrays[f"users_{number}"] = values.users
        arrays[f"table_{number}"] = values.table
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path.with_suffix(".npz"), buffer.getvalue())
    content = {"cost": asdict(measured.cost), "parts": list(measured.parts)}
    write_atomic(path.with_suffix(".json"), json.dumps(content, ensure_ascii=False))


def load(path: Path) -> Measured | None:
    """Reads what `save` wrote; `None` if it is not there, or not complete."""
    if not path.with_suffix(".json").is_file():
        return None
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        parts = {
            (protocol, objective): Values(
                arrays[f"users_{number}"], arrays[f"table_{number}"]
            )
            for number, (protocol, objective) in enumerate(content["parts"])
        }
    return Measured(Cost(**content["cost"]), parts)


@dataclass(frozen=True)
class Pooled:
    """Values of users, summed over seeds.

    Attributes:
      sums: float [n, metrics].
      counts: int [n], seeds with which each user was measured.
      by_seed: mean over users of each seed, float [seeds, metrics].
    """

    sums: np.ndarray
    counts: np.ndarray
    by_seed: np.ndarray

    def interval(self, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and interval; see `pooled_interval`."""
        return pooled_interval(self.sums, self.counts, samples, seed)


def pool(values: Sequence[Values]) -> Pooled:
    """Adds up the values of each user, told by id, over seeds.

    Example:
      >>> one = Values(np.array(["a", "b"]), np.array([[1.0], [0.0]]))
      >>> other = Values(np.array(["b"]), np.array([[1.0]]))
      >>> pooled = pool([one, other])
      >>> pooled.sums.ravel().tolist(), pooled.counts.tolist()
      ([1.0, 1.0], [1, 2])
    """
    table = np.concatenate([part.table for part in values])
    users = np.concatenate([part.users for part in values])
    _, number = np.unique(users, return_inverse=True)
    size = int(number.max(initial=-1)) + 1
    sums = np.zeros((size, table.shape[1]))
    np.add.at(sums, number, table)
    by_seed = [
        part.table.mean(axis=0) if len(part.table) else np.full(table.shape[1], np.nan)
        for part in values
    ]
    return Pooled(sums, np.bincount(number, minlength=size), np.stack(by_seed))


def differences(ours: Sequence[Values], theirs: Sequence[Values]) -> list[Values]:
    """Returns ours minus theirs, seed by seed; both rank for the same users."""
    return [
        Values(a.users, a.table - b.table) for a, b in zip(ours, theirs, strict=True)
    ]


def summary(pooled: Pooled, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    """Returns mean, interval and the means of the seeds, by metric."""
    names = metric_names(config.ks)
    if not len(pooled.counts):
        return dict.fromkeys(names)
    mean, (low, high) = pooled.interval(config.bootstrap_samples, seed)
    return {
        name: {
            "mean": float(mean[column]),
            "ci95": [float(low[column]), float(high[column])],
            "seeds": pooled.by_seed[:, column].tolist(),
        }
        for column, name in enumerate(names)
    }


def mean_cost(costs: Sequence[Cost]) -> dict[str, Any]:
    """Returns the costs of a system, those of training as a mean over seeds."""
    last = asdict(costs[-1])
    for name in ("training_seconds", "examples_seen"):
        last[name] = float(np.mean([getattr(cost, name) for cost in costs]))
    return last
