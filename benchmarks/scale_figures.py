"""Draws what `scale.py` has measured.

    python benchmarks/scale_figures.py RESULTS.json [MORE.json ...] [--folder docs]

Several files are taken as one: parts and sizes may have been measured apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfcsmf.evaluation import figures as house

# Names of what is measured.
TABLE, ENCODE = "table: weights, owners, Adam", "encode, 3 passes"
STAGE, CASCADE, QUERY = "train one objective", "train all", "fused query"
OURS, STOCK = "tfcsmf, stage 1", "stock TFRS"
MEASURED_K = 50  # of the recalls of the objectives

DEFAULT = harness.ROOT / "benchmarks" / "results" / "scale.json"


class Results:
    """The lines of results files: where two have the same one, that of the last."""

    def __init__(self, paths: Iterable[Path]) -> None:
        lines = [
            line
            for path in paths
            for line in json.loads(path.read_text(encoding="utf-8"))["results"]
        ]
        named = {json.dumps([line["system"], line["setting"]]): line for line in lines}
        self.lines = list(named.values())

    def points(
        self, system: str, x: str, y: str = "median", **setting: Any
    ) -> list[tuple[float, float]]:
        """(x, y) of the lines with this setting, in order of x."""
        return sorted(
            (line["setting"][x], line[y])
            for line in self.lines
            if line["system"] == system
            and line.get(y) is not None
            and setting.items() <= line["setting"].items()
        )

    def settings(self, system: str, name: str) -> list[Any]:
        """Values of a setting in the lines of a system, in order of appearance."""
        lines = (line for line in self.lines if line["system"] == system)
        return list(dict.fromkeys(line["setting"][name] for line in lines))


Curves = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Panel:
    """Curves by name; `log` names the axes that are logarithmic."""

    title: str
    label: str
    curves: Curves
    log: str = ""


def draw_figures(sources: Iterable[Path], folder: Path) -> list[Path]:
    """Draws what the results have of each part; returns the figures' paths."""
    results = Results(sources)
    written = []
    for name, make in FIGURES.items():
        panels = [panel for panel in make(results) if any(panel.curves.values())]
        if not panels:
            continue
        path = folder / f"scale_{name}.svg"
        style = house.theme_style("light") | {"svg.hashsalt": name}
        with mpl.rc_context(style):
            size = (3.9 * len(panels), 4.1)
            figure = Figure(figsize=size, layout="constrained")
            every = figure.subplots(1, len(panels), squeeze=False)[0]
            for axes, panel in zip(every, panels, strict=True):
                draw_panel(axes, panel)
            # No date: the same numbers then give the same bytes.
            figure.savefig(path, format="svg", metadata={"Date": None})
        written.append(path)
    return written


def draw_panel(axes: Axes, panel: Panel) -> None:
    drawn = {name: curve for name, curve in panel.curves.items() if curve}
    for number, (name, curve) in enumerate(drawn.items()):
        x, y = zip(*curve, strict=True)
        marker = house.MARKERS[number % len(house.MARKERS)]
        # A second round of the colours is dashed.
        line = "-" if number < len(house.MARKERS) else "--"
        colour = house.theme_colour("light", number)
        axes.plot(x, y, line, marker=marker, color=colour, markersize=5, label=name)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.label)
    axes.set_xscale("log" if "x" in panel.log else "linear")
    axes.set_yscale("log" if "y" in panel.log else "linear")
    if "y" not in panel.log:
        axes.set_ylim(bottom=0)
    if panel.label != "items":  # few and small numbers: all of them
        ticks = sorted({x for curve in drawn.values() for x, _ in curve})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    if len(drawn) > 1:
        columns = 2 if len(drawn) > 4 else 1
        axes.legend(frameon=False, fontsize=8.5, ncols=columns)


def catalogue_panels(results: Results) -> list[Panel]:
    kinds = {"exact": "exact", "ScaNN": "scann"}
    build = {kind: results.points(f"{kind}: build", "items") for kind in kinds.values()}
    peak = "peak_memory_gib"
    memory = {
        "table, weights + owners + Adam": results.points(TABLE, "items"),
        "peak, encoding": results.points(ENCODE, "items", peak),
    } | {
        f"peak, {shown} index": results.points(f"{kind}: build", "items", peak)
        for shown, kind in kinds.items()
    }
    seconds = {"encode": results.points(ENCODE, "items", "encode_s")} | {
        f"build {shown}": build[kind] for shown, kind in kinds.items()
    }
    queries = {
        f"{shown}, batch {batch}": results.points(
            f"{kind}: query", "items", batch=batch
        )
        for shown, kind in kinds.items()
        for batch in results.settings(f"{kind}: query", "batch")
    }
    return [
        Panel("memory (GiB)", "items", memory, "xy"),
        Panel("time to prepare (s)", "items", seconds, "xy"),
        Panel("time of a request (ms, p50)", "items", queries, "xy"),
    ]


def objectives_panels(results: Results) -> list[Panel]:
    recalls = {
        name.replace("_", " "): results.points(
            STAGE, "objectives", "test_recall", objective=name
        )
        for name in results.settings(STAGE, "objective")
    }
    times = {"all": results.points(CASCADE, "objectives")}
    queries = {
        f"batch {batch}, {items:,} items": results.points(
            QUERY, "objectives", batch=batch, items=items
        )
        for batch in results.settings(QUERY, "batch")
        for items in results.settings(QUERY, "items")
    }
    return [
        Panel(f"test recall@{MEASURED_K} by objective", "objectives", recalls),
        Panel("training time, all (s)", "objectives", times),
        Panel("fused query (ms, p50)", "objectives", queries),
    ]


def batch_panels(results: Results) -> list[Panel]:
    def curves(y: str) -> Curves:
        return {
            f"{system}, {optimizer}": results.points(
                system, "batch", y, optimizer=optimizer
            )
            for system in (OURS, STOCK)
            for optimizer in results.settings(system, "optimizer")
        }

    rates, peaks = curves("median"), curves("peak_memory_gib")
    return [
        Panel("training, examples/s", "batch size", rates, "xy"),
        Panel("peak memory (GiB)", "batch size", peaks, "x"),
    ]


FIGURES: dict[str, Callable[[Results], list[Panel]]] = {
    "catalogue": catalogue_panels,
    "objectives": objectives_panels,
    "batch": batch_panels,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, default=[DEFAULT])
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    options = parser.parse_args(argv)
    for path in draw_figures(options.results, options.folder):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
