"""The numbers of a run as text: selection, formatting, the terminal table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

MODEL = "model"
_NAME = re.compile(r"(recall|hit_rate|ndcg)@(\d+)")


def systems(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns results by protocol for the model and for every baseline."""
    return {MODEL: metrics["protocols"], **metrics.get("baselines", {})}


def headline_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Returns recall and NDCG at 10 and 50, or at the cut-offs nearest to them.

    Example:
      >>> one = {"recall@20": 0.1, "recall@20_ci95": [0, 1], "ndcg@20": 0.1}
      >>> headline_metrics({"protocols": {"unseen": {"buy": one}}})
      ['recall@20', 'ndcg@20']
    """
    found = {
        match.groups()
        for objectives in metrics["protocols"].values()
        for result in objectives.values()
        for match in map(_NAME.fullmatch, result)
        if match
    }
    ks = sorted({int(k) for _, k in found})
    if not ks:
        return []
    near = sorted({min(ks, key=lambda k: abs(math.log(k / want))) for want in (10, 50)})
    return [f"{name}@{k}" for name in ("recall", "ndcg") for k in near]


def cell(result: Mapping[str, Any], name: str) -> str:
    """Returns a value with half the width of its interval.

    Example:
      >>> cell({"ndcg@10": 0.25, "ndcg@10_ci95": [0.24, 0.27]}, "ndcg@10")
      '.2500 ±.0150'
      >>> cell({"ndcg@10": None}, "ndcg@10")
      '-'
    """
    value, interval = result.get(name), result.get(f"{name}_ci95")
    if value is None:
        return "-"
    if not interval:
        return _short(value)
    return f"{_short(value)} ±{_short((interval[1] - interval[0]) / 2)}"


def format_table(metrics: Mapping[str, Any]) -> str:
    """Returns the results as a plain-text table for the terminal.

    Args:
      metrics: the contents of `metrics.json`.

    Returns:
      One block per protocol and objective, one line per system; ± is half the
      width of the 95 % interval.
    """
    names = headline_metrics(metrics)
    rows = [["protocol", "objective", "users", "system", *names]]
    for protocol, objectives in metrics["protocols"].items():
        for objective, result in objectives.items():
            head = [protocol, objective, f"{result.get('users', 0):,}"]
            for system, protocols in systems(metrics).items():
                own = protocols.get(protocol, {}).get(objective, {})
                rows.append([*head, system, *(cell(own, name) for name in names)])
                head = ["", "", ""]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines: list[str] = []
    protocol = rows[0][0]
    for row in rows:
        if row[0] and row[0] != protocol:
            protocol = row[0]
            lines.append(rule)
        lines.append(
            "  ".join(
                text.rjust(width) if column == 2 else text.ljust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """Returns the value as JSON can hold it: NumPy unwrapped, NaN as None.

    Example:
      >>> plain({"a": np.float32(0.5), "b": [float("nan")], "c": np.arange(2)})
      {'a': 0.5, 'b': [None], 'c': [0, 1]}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns the leaves of nested settings as (dotted path, text).

    Example:
      >>> flatten({"a": {"b": 1, "c": [2, 3]}, "d": None})
      [('a.b', '1'), ('a.c', '2, 3'), ('d', '-')]
    """
    leaves: list[tuple[str, str]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, f"{path}.")
        elif isinstance(value, list | tuple):
            leaves.append((path, ", ".join(map(str, value)) or "-"))
        else:
            leaves.append((path, "-" if value is None or value == {} else str(value)))
    return leaves


def _short(value: float) -> str:
    """Four decimals without the leading zero: the values are shares."""
    return f"{value:.4f}".removeprefix("0") if value >= 0 else f"{value:.4f}"
