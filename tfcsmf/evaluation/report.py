"""The report of a run: `metrics.json` for programs, `index.html` for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tfcsmf.evaluation import figures
from tfcsmf.evaluation.cluster_map import cluster_map
from tfcsmf.evaluation.metrics import METRICS
from tfcsmf.evaluation.tables import (
    cell,
    flatten,
    format_table,
    headline_metrics,
    plain,
    systems,
)
from tfcsmf.files import write_atomic

__all__ = ["format_table", "write_report"]


def write_report(
    directory: str | os.PathLike[str],
    metrics: Mapping[str, Any],
    *,
    history: Mapping[str, Any] | None = None,
    capacity: Mapping[str, Mapping[str, float]] | None = None,
    tradeoff: Mapping[str, Any] | None = None,
    clusters: tuple[np.ndarray, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
    title: str = "tfcsmf run",
) -> Path:
    """Writes `report/` of a run: metrics.json, index.html and the figures.

    Every file is written atomically, `metrics.json` last: where it is new, the rest
    is. NaN and infinities are written as null.

    Args:
      directory: output folder of the run; `report/` is created in it.
      metrics: contents of `metrics.json`: `objectives`, `protocols`, and where
        known `stages`, `model`, `frozen_max_abs_change`, `baselines` and `clusters`
        (`tfcsmf.negatives.diagnostics`).
      history: `{stage: {"phases": [...]}}`, see `figures.learning_curves`.
      capacity: `{layer: {owner: share}}`, see `figures.capacity`.
      tradeoff: see `figures.tradeoff_curve`; leave it out with one objective.
      clusters: places and clusters of the catalogue, see `cluster_map`.
      settings: nested settings to list, such as `Config.to_dict()`.
      title: heading of the page.

    Returns:
      The path of `index.html`.
    """
    metrics, history = plain(metrics), plain(history or {})
    capacity, tradeoff = plain(capacity or {}), plain(tradeoff or {})
    folder = Path(directory) / "report"
    drawn = _write_figures(folder, metrics, history, capacity, tradeoff, settings or {})
    if clusters is not None:
        drawn.append("clusters")
        for theme in figures.THEMES:
            suffix = "" if theme == "light" else f"_{theme}"
            image = cluster_map(*clusters, theme)
            write_atomic(folder / f"clusters{suffix}.png", image)
    page = _page(metrics, capacity, tradeoff, settings or {}, drawn, title)
    write_atomic(folder / "index.html", page)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "metrics.json", text + "\n")
    return folder / "index.html"


def _write_figures(
    folder: Path,
    metrics: Mapping[str, Any],
    history: Mapping[str, Any],
    capacity: Mapping[str, Mapping[str, float]],
    tradeoff: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[str]:
    """Writes each figure for light and dark pages; returns the names drawn."""
    k = settings.get("evaluation", {}).get("validation_k")
    recall = f"recall@{k}" if k else "recall"
    drawn: list[str] = []
    for theme in figures.THEMES:
        images: dict[str, bytes] = {}
        if headline_metrics(metrics):
            images["metrics"] = figures.metric_dots(metrics, theme)
        if history:
            images["learning_curves"] = figures.learning_curves(history, recall, theme)
        if capacity:
            images["capacity"] = figures.capacity(capacity, theme)
        if tradeoff.get("points"):
            images["tradeoff"] = figures.tradeoff_curve(tradeoff, theme)
        for name, image in images.items():
            suffix = "" if theme == "light" else f"_{theme}"
            write_atomic(folder / f"{name}{suffix}.png", image)
        drawn = list(images)
    return drawn


def _page(
    metrics: Mapping[str, Any],
    capacity: Mapping[str, Mapping[str, float]],
    tradeoff: Mapping[str, Any],
    settings: Mapping[str, Any],
    drawn: list[str],
    title: str,
) -> str:
    owners = list(dict.fromkeys(name for row in capacity.values() for name in row))
    owners.sort(key=lambda owner: owner == figures.FREE)
    return render(
        "report.html.j2",
        title=title,
        metrics=metrics,
        names=headline_metrics(metrics),
        all_names=_all_names(metrics),
        systems=systems(metrics),
        stages=metrics.get("stages", []),
        model=metrics.get("model", {}),
        capacity=capacity,
        owners=owners,
        tradeoff=tradeoff,
        drawn=drawn,
        settings=flatten(settings),
        cell=cell,
    )


def render(template: str, **values: Any) -> str:
    """Returns a page made from a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfcsmf.evaluation", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def _all_names(metrics: Mapping[str, Any]) -> list[str]:
    """Returns every metric measured, by name and cut-off."""
    found = {
        tuple(name.split("@"))
        for objectives in metrics["protocols"].values()
        for result in objectives.values()
        for name in result
        if "@" in name and not name.endswith("_ci95")
    }
    ordered = sorted(found, key=lambda pair: (METRICS.index(pair[0]), int(pair[1])))
    return ["@".join(pair) for pair in ordered]
