"""The report of a comparison: JSON for programs, a table and a figure for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfcsmf.evaluation import figures
from tfcsmf.evaluation.tables import plain
from tfcsmf.files import write_atomic

_SHOWN = 50  # the cut-off of table and figure is the one nearest to it


def write_comparison(directory: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes `report/` of a comparison: `.txt`, `.png` and, last, `.json`.

    The files are `comparison.*`, or `comparison_validation.*` where validation
    queries were measured.

    Args:
      directory: output folder of the comparison.
      content: what `Comparison.report` returns.

    Returns:
      The path of the JSON file.
    """
    content = plain(content)
    suffix = "" if content["on"] == "test" else f"_{content['on']}"
    path = Path(directory) / "report" / f"comparison{suffix}"
    write_atomic(path.with_suffix(".txt"), format_comparison(content))
    write_atomic(path.with_suffix(".png"), draw(content))
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path.with_suffix(".json"), text + "\n")
    return path.with_suffix(".json")


def format_comparison(content: Mapping[str, Any]) -> str:
    """Returns the comparison as a plain-text table.

    One block per protocol and objective; every metric with the difference to the
    reference and its paired 95 % interval, marked `*` where that excludes 0.
    """
    names = shown_metrics(content)
    lines = _cost_lines(content)
    for protocol, objectives in content["protocols"].items():
        for objective, compared in objectives.items():
            users = max((entry["users"] for entry in compared.values()), default=0)
            lines += ["", f"{objective}, {protocol} protocol, {users:,} users"]
            rows = [["system"]]
            for name in names:
                rows[0] += [name, f"less {content['reference']} (95 % interval)"]
            for system, entry in compared.items():
                cells = [_cells(entry, name) for name in names]
                rows.append([system, *(text for pair in cells for text in pair)])
            lines += _aligned(rows)
    return "\n".join(lines) + "\n"


def shown_metrics(content: Mapping[str, Any]) -> list[str]:
    """Returns recall and NDCG at the cut-off nearest to 50."""
    found = {
        name
        for objectives in content["protocols"].values()
        for compared in objectives.values()
        for entry in compared.values()
        for name in entry["metrics"]
    }
    ks = sorted({int(name.rpartition("@")[2]) for name in found})
    if not ks:
        return []
    k = min(ks, key=lambda k: abs(k - _SHOWN))
    return [f"recall@{k}", f"ndcg@{k}"]


def draw(content: Mapping[str, Any]) -> bytes:
    """Draws the first shown metric of all systems with 95 % intervals, as PNG."""
    names, systems = shown_metrics(content), list(content["systems"])
    protocols, objectives = content["protocols"], content["objectives"]
    size = (
        1.8 + 2.7 * len(objectives),
        1 + len(protocols) * (0.6 + 0.26 * len(systems)),
    )
    with mpl.rc_context(figures.theme_style("light")):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(protocols), len(objectives), squeeze=False)
        for row, protocol in zip(axes, protocols, strict=True):
            for panel, objective in zip(row, objectives, strict=True):
                compared = protocols[protocol][objective]
                if names:
                    _draw_panel(panel, compared, names[0], content["reference"])
                panel.set_title(f"{objective}, {protocol}")
                if panel is not row[0]:
                    panel.tick_params(labelleft=False)
        for panel in axes[-1]:
            panel.set_xlabel(f"{names[0]} (95 % interval)" if names else "")
        return figures.png(figure)


def _draw_panel(
    panel: Axes, compared: Mapping[str, Any], name: str, reference: str
) -> None:
    systems = list(compared)
    for number, system in enumerate(systems):
        result = compared[system]["metrics"].get(name)
        if result is None:
            continue
        mean, (low, high) = result["mean"], result["ci95"]
        colour = figures.theme_colour("light", 0 if system == reference else 2)
        panel.errorbar(
            [mean],
            [number],
            xerr=np.abs([[mean - low], [high - mean]]),
            fmt="s" if system == reference else "o",
            color=colour,
            capsize=2,
            markersize=4,
        )
        if system == reference:
            panel.axvspan(low, high, color=colour, alpha=0.12)
    panel.set_yticks(range(len(systems)), systems)
    panel.set_ylim(len(systems) - 0.5, -0.5)


def _cost_lines(content: Mapping[str, Any]) -> list[str]:
    header = (
        "system", "networks", "parameters", "dimension", "index queries",
        "training s", "seeds",
    )  # fmt: skip
    rows = [list(header)]
    for system, cost in content["systems"].items():
        rows.append(
            [
                system,
                str(cost["networks"]),
                f"{cost['parameters']:,}",
                str(cost["dimension"] or "-"),
                str(cost["index_queries"] or "-"),
                f"{cost['training_seconds']:.0f}",
                ",".join(map(str, cost["seeds"])),
            ]
        )
    return [f"measured on {content['on']} queries", *_aligned(rows)]


def _cells(entry: Mapping[str, Any], name: str) -> tuple[str, str]:
    value = entry["metrics"].get(name)
    apart = entry.get("difference", {}).get(name)
    if value is None:
        return "-", ""
    if apart is None:
        return _short(value["mean"]), ""
    low, high = apart["ci95"]
    clear = "*" if low > 0 or high < 0 else ""
    text = f"{apart['mean']:+.4f} ({low:+.4f} to {high:+.4f}){clear}"
    return _short(value["mean"]), text


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) for text, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
