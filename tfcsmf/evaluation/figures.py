"""The figures of the report, as PNG bytes.

Colours are those of Okabe and Ito, told apart with any colour vision; shape or
text repeats what colour says. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfcsmf.evaluation.tables import headline_metrics, systems

ThemeName = Literal["light", "dark"]

FREE = "FREE"
_BLUE, _SKY = "#0072B2", "#56B4E9"
_OTHERS = ("#E69F00", "#009E73", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P")
_COLUMNS = 4  # learning curves beside each other


@dataclass(frozen=True)
class Theme:
    """Colours of the page a figure stands on."""

    background: str
    text: str
    faint: str
    free: str
    palette: tuple[str, ...]


THEMES: dict[ThemeName, Theme] = {
    "light": Theme("#ffffff", "#1f2328", "#d8dee4", "#e6e8eb", (_BLUE, *_OTHERS, _SKY)),
    "dark": Theme("#161b22", "#e6edf3", "#3a424d", "#30363d", (_SKY, *_OTHERS, _BLUE)),
}


def learning_curves(
    history: Mapping[str, Mapping[str, Any]], validation_label: str, theme: ThemeName
) -> bytes:
    """Draws training loss (above) and validation recall (below) of every stage.

    Args:
      history: `{stage: {"phases": [phase, ...]}}`; a phase has `phase` ("train" or
        "recovery"), `step` and `loss`, `validation_step` and `validation`. Steps are
        counted from the start of the stage; recovery is shaded.
      validation_label: what `validation` measures, such as "recall@50".
      theme: of the page.
    """
    columns = min(_COLUMNS, max(1, len(history)))
    bands = max(1, math.ceil(len(history) / columns))
    with mpl.rc_context(theme_style(theme)):
        figure = Figure(
            figsize=(1.4 + 3.2 * columns, 4.8 * bands), layout="constrained"
        )
        axes = figure.subplots(2 * bands, columns, squeeze=False)
        for panel in axes.flat:
            panel.set_visible(False)
        for number, (stage, record) in enumerate(history.items()):
            band, column = divmod(number, columns)
            colour = theme_colour(theme, number)
            above, below = axes[2 * band, column], axes[2 * band + 1, column]
            for panel, x, y, label in (
                (above, "step", "loss", "training loss (nats)"),
                (
                    below,
                    "validation_step",
                    "validation",
                    f"validation {validation_label}",
                ),
            ):
                panel.set_visible(True)
                _draw_phases(panel, record["phases"], x, y, colour, theme)
                panel.set_ylabel(label if column == 0 else "")
            below.set_xlabel("step of the stage")
            below.sharex(above)
            above.tick_params(labelbottom=False)
            above.set_title(f"stage {number + 1}: {stage}")
        return png(figure)


def capacity(shares: Mapping[str, Mapping[str, float]], theme: ThemeName) -> bytes:
    """Draws which stage owns how much of each layer.

    Args:
      shares: layer -> owner -> share of the layer's entries, 0 to 1; layers from
        input to output, owners in stage order, `FREE` for entries nobody owns.
      theme: of the page.
    """
    layers = list(shares)
    owners = list(dict.fromkeys(owner for row in shares.values() for owner in row))
    owners.sort(key=lambda owner: owner == FREE)  # stable: stages keep their order
    with mpl.rc_context(theme_style(theme)):
        size = (8.6, 1.3 + 0.36 * max(1, len(layers)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(layers))
        for number, owner in enumerate(owners):
            widths = np.array([100 * shares[name].get(owner, 0.0) for name in layers])
            colour, hatch = theme_colour(theme, number), ""
            if owner == FREE:
                colour, hatch = THEMES[theme].free, "///"
            bars = axes.barh(
                layers, widths, left=left, color=colour, hatch=hatch, label=owner,
                edgecolor=THEMES[theme].background, height=0.72,
            )  # fmt: skip
            texts = [f"{width:.0f}" if width >= 5 else "" for width in widths]
            ink = THEMES[theme].text if owner == FREE else _ink_on(colour)
            axes.bar_label(bars, texts, label_type="center", color=ink, fontsize=8.5)
            left += widths
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the layer's parameters (%)")
        axes.grid(axis="y", visible=False)
        if owners:
            figure.legend(
                loc="outside upper center", ncols=min(6, len(owners)), frameon=False
            )
        return png(figure)


def metric_dots(metrics: Mapping[str, Any], theme: ThemeName) -> bytes:
    """Draws two metrics with 95 % intervals: model and baselines, per protocol.

    Args:
      metrics: the contents of `metrics.json`.
      theme: of the page.
    """
    names = headline_metrics(metrics)
    names = [name for name in (names[1:2] + names[2:3])] if len(names) == 4 else names
    protocols, results = list(metrics["protocols"]), systems(metrics)
    objectives = list(metrics["objectives"])
    rows, columns = len(names), max(1, len(protocols))
    with mpl.rc_context(theme_style(theme)):
        high = 0.9 + rows * (0.8 + 0.2 * len(objectives) * (1 + len(results)))
        figure = Figure(figsize=(9.6, high), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for row, name in enumerate(names):
            for column, protocol in enumerate(protocols):
                panel = axes[row, column]
                _draw_dots(panel, results, protocol, objectives, name, theme)
                panel.set_xlabel(f"{name} (mean over users, 95 % interval)")
                if row == 0:
                    panel.set_title(f"{protocol} protocol")
                if column:
                    panel.tick_params(labelleft=False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=5, frameon=False
        )
        return png(figure)


def tradeoff_curve(tradeoff: Mapping[str, Any], theme: ThemeName) -> bytes:
    """Draws recall of one objective against another as the weights move.

    Args:
      tradeoff: `objectives` [a, b], `k`, `protocol`, and `points`, each with
        `weights` and `recall` by objective, from all weight on a to all on b.
      theme: of the page.
    """
    a, b = tradeoff["objectives"]
    points = tradeoff["points"]
    x = np.array([_number(point["recall"].get(a)) for point in points])
    y = np.array([_number(point["recall"].get(b)) for point in points])
    with mpl.rc_context(theme_style(theme)):
        figure = Figure(figsize=(6.2, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            x,
            y,
            "-o",
            color=theme_colour(theme, 0),
            markersize=5,
            label="weights between",
        )
        for index, only, marker, colour in ((0, a, "s", 1), (-1, b, "D", 3)):
            axes.plot(
                x[index : index + 1 or None], y[index : index + 1 or None], marker,
                color=theme_colour(theme, colour), markersize=11, label=f"{only} alone",
                markeredgecolor=THEMES[theme].background,
            )  # fmt: skip
        for index in sorted({len(points) // 4, len(points) // 2, 3 * len(points) // 4}):
            if 0 < index < len(points) - 1:
                share = "{:.2g} : {:.2g}".format(
                    *(points[index]["weights"].get(name, 0.0) for name in (a, b))
                )
                axes.annotate(
                    share, (x[index], y[index]), (7, 5), textcoords="offset points",
                    fontsize=8.5,
                )  # fmt: skip
        axes.margins(0.12)
        axes.set_xlabel(f"recall@{tradeoff['k']} of {a}")
        axes.set_ylabel(f"recall@{tradeoff['k']} of {b}")
        axes.set_title(f"weights {a} : {b} ({tradeoff['protocol']} protocol)")
        axes.legend(frameon=False)
        return png(figure)


def _draw_phases(
    axes: Axes,
    phases: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    colour: str,
    theme: ThemeName,
) -> None:
    for phase in phases:
        recovery = phase["phase"] == "recovery"
        steps = np.array([_number(value) for value in phase.get(x, [])])
        values = np.array([_number(value) for value in phase.get(y, [])])
        marker = "o" if y == "validation" else ""
        axes.plot(steps, values, marker=marker, color=colour,
                  linestyle="--" if recovery else "-", markersize=4)  # fmt: skip
        span = [*phase.get("step", []), *phase.get("validation_step", [])]
        if recovery and span:  # marked in both panels, named in the upper one
            axes.axvspan(min(span), max(span), color=THEMES[theme].faint, alpha=0.5)
            if y == "loss":
                middle = (min(span) + max(span)) / 2
                axes.annotate(
                    "recovery", (middle, 0.97), xycoords=("data", "axes fraction"),
                    ha="center", va="top", fontsize=8.5, rotation=90,
                )  # fmt: skip


def _draw_dots(
    axes: Axes,
    results: Mapping[str, Mapping[str, Any]],
    protocol: str,
    objectives: Sequence[str],
    name: str,
    theme: ThemeName,
) -> None:
    gap = 0.8 / max(1, len(results))
    for number, (system, protocols) in enumerate(results.items()):
        cells = [protocols.get(protocol, {}).get(o, {}) for o in objectives]
        centre = np.array([_number(cell.get(name)) for cell in cells])
        bounds = np.array(
            [
                [_number(bound) for bound in cell.get(f"{name}_ci95") or (None, None)]
                for cell in cells
            ]
        ).reshape(len(cells), 2)
        place = np.arange(len(objectives)) + gap * (number - (len(results) - 1) / 2)
        axes.errorbar(
            centre, place, xerr=np.abs(bounds.T - centre), linestyle="", capsize=3,
            marker=MARKERS[number % 6], color=theme_colour(theme, number), markersize=6,
            label=system,
        )  # fmt: skip
    axes.set_yticks(range(len(objectives)), objectives)
    axes.set_ylim(len(objectives) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    for edge in np.arange(len(objectives) - 1) + 0.5:
        axes.axhline(edge, color=THEMES[theme].faint, linewidth=0.8)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def theme_colour(theme: ThemeName, number: int) -> str:
    """Returns the colour of the curve of this number."""
    palette = THEMES[theme].palette
    return palette[number % len(palette)]


def _ink_on(colour: str) -> str:
    red, green, blue = mpl.colors.to_rgb(colour)
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    return "#1f2328" if light else "#ffffff"


def theme_style(theme: ThemeName) -> Any:
    """Returns Matplotlib's settings for a theme."""
    colours = THEMES[theme]
    ink = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return dict.fromkeys(ink, colours.text) | {
        "figure.facecolor": colours.background,
        "axes.facecolor": colours.background,
        "savefig.facecolor": colours.background,
        "axes.edgecolor": colours.faint,
        "hatch.color": colours.faint,
        "grid.color": colours.faint,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "lines.linewidth": 1.8,
    }


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG."""
    buffer = io.BytesIO()
    # No software field: the same numbers then give the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
