"""The figures of a sweep, as PNG bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfcsmf.evaluation import figures
from tfcsmf.tuning.space import Parameter, Space

_MOST_PAIRS = 6  # of objectives, drawn against each other


def draw(
    content: Mapping[str, Any], space: Space, theme: figures.ThemeName
) -> dict[str, bytes]:
    """Returns the figures by name; those that would be empty are left out.

    Args:
      content: of `report/sweep.json`.
      space: what was searched.
      theme: of the page.
    """
    images = {"history": history(content, theme)}
    if any(trial["status"] == "finished" for trial in content["trials"]):
        images["coordinates"] = coordinates(content, space, theme)
    if len(content["objectives"]) > 1:
        images["pareto"] = pareto(content, theme)
    return images


def history(content: Mapping[str, Any], theme: figures.ThemeName) -> bytes:
    """Draws the score of every trial as they came, and the best so far."""
    with mpl.rc_context(figures.theme_style(theme)):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained")
        axes = figure.subplots()
        known = [
            (number, trial["score"], trial["status"])
            for number, trial in enumerate(content["trials"], start=1)
            if trial["score"] is not None
        ]
        for status, marker, number, label in (
            ("finished", "o", 0, "finished"),
            ("pruned", "x", 3, "stopped early (estimate)"),
        ):
            some = [(n, score) for n, score, own in known if own == status]
            if some:
                axes.scatter(
                    [n for n, _ in some], [score for _, score in some], marker=marker,
                    s=34, color=figures.theme_colour(theme, number), label=label,
                )  # fmt: skip
        best, steps = content["reference"]["score"], [0]
        heights = [best]
        for number, score, status in known:
            if status == "finished":
                best = max(best, score)
            steps.append(number)
            heights.append(best)
        colour, ink = figures.theme_colour(theme, 1), figures.THEMES[theme].text
        axes.step(steps, heights, where="post", color=colour, label="best so far")
        axes.axhline(
            heights[0], linestyle=":", linewidth=1.2, color=ink, label="as configured"
        )
        axes.set_xlabel("trial")
        axes.set_ylabel("score (1 = as configured)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, ncols=2, fontsize=8.5)
        return figures.png(figure)


def coordinates(
    content: Mapping[str, Any], space: Space, theme: figures.ThemeName
) -> bytes:
    """Draws finished trials as lines over parameters, metrics and the score.

    Parameters stand on their ranges, metrics between the least and the most that was
    reached; lines are coloured by the score, the best one is thick.
    """
    trials = sorted(
        (trial for trial in content["trials"] if trial["status"] == "finished"),
        key=lambda trial: trial["score"],
    )
    columns: list[tuple[str, str, str, list[float]]] = []  # name, low, high, heights
    for parameter in space.parameters:
        heights = [parameter.place(t["settings"][parameter.path]) for t in trials]
        columns.append((parameter.path, *_ends(parameter), heights))
    for name in (*content["objectives"], "score"):
        values = [t["score"] if name == "score" else t["values"][name] for t in trials]
        low, high = min(values), max(values)
        heights = [(v - low) / (high - low) if high > low else 0.5 for v in values]
        label = name if name == "score" else f"{content['metric']} {name}"
        columns.append((label, f"{low:.3g}", f"{high:.3g}", heights))
    scores = [trial["score"] for trial in trials]
    faint, strong = figures.THEMES[theme].faint, figures.theme_colour(theme, 0)
    scale = LinearSegmentedColormap.from_list("score", [faint, strong])
    norm = Normalize(min(scores), max(max(scores), min(scores) + 1e-9))
    with mpl.rc_context(figures.theme_style(theme)):
        size = (max(6.0, 1.2 + 1.25 * len(columns)), 5.2)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        table = np.array([heights for *_, heights in columns])  # [columns, trials]
        for number, trial in enumerate(trials):
            best = trial["name"] == content["best"]
            own = scale(norm(trial["score"]))
            axes.plot(
                table[:, number],
                color=figures.theme_colour(theme, 3) if best else own,
                linewidth=2.8 if best else 1.4,
                label="best" if best else None,
                zorder=3 if best else 2,
            )
        for place, (_, low, high, _) in enumerate(columns):
            axes.axvline(place, color=faint, linewidth=1.0, zorder=1)
            for text, height, side in ((low, -0.03, "top"), (high, 1.03, "bottom")):
                axes.text(place, height, text, ha="center", va=side, fontsize=8)
        labels = [_two_lines(name) for name, *_ in columns]
        axes.set_xticks(
            range(len(columns)), labels, rotation=30, ha="right", fontsize=8
        )
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        if content["best"] != "reference":
            figure.legend(frameon=False, loc="outside upper left")
        return figures.png(figure)


def pareto(content: Mapping[str, Any], theme: figures.ThemeName) -> bytes:
    """Draws metrics of every two objectives against each other, one dot per trial.

    The Pareto set is that over *all* objectives, so with three or more some of its
    dots may look beaten in a panel.
    """
    pairs = list(itertools.combinations(content["objectives"], 2))[:_MOST_PAIRS]
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    with mpl.rc_context(figures.theme_style(theme)):
        size = (1.6 + 3.4 * columns, 0.9 + 3.2 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for panel in axes.flat[len(pairs) :]:
            panel.set_visible(False)
        for panel, pair in zip(axes.flat, pairs, strict=False):
            _draw_pair(panel, content, pair, theme)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=2 if columns == 1 else 4,
            frameon=False,
        )
        return figures.png(figure)


def _draw_pair(
    axes: Axes, content: Mapping[str, Any], pair: tuple[str, str], theme: Any
) -> None:
    members, best = set(content["pareto"]), content["best"]
    finished = [t for t in content["trials"] if t["status"] == "finished"]
    groups: list[tuple[str, list[Any], str, int, int]] = [
        ("trial", [t for t in finished if t["name"] not in members], "o", 5, 26),
        ("Pareto set", [t for t in finished if t["name"] in members], "o", 0, 40),
        ("as configured", [content["reference"]], "s", 1, 60),
        ("best score", [t for t in finished if t["name"] == best], "D", 3, 60),
    ]
    for label, trials, marker, colour, size in groups:
        if trials:
            axes.scatter(
                [t["values"][pair[0]] for t in trials],
                [t["values"][pair[1]] for t in trials],
                marker=marker, s=size, label=label,
                color=figures.theme_colour(theme, colour),
                edgecolor=figures.THEMES[theme].background,
            )  # fmt: skip
    axes.set_xlabel(f"{content['metric']} of {pair[0]}")
    axes.set_ylabel(f"{content['metric']} of {pair[1]}")
    axes.margins(0.08)


def _ends(parameter: Parameter) -> tuple[str, str]:
    if parameter.kind == "choice":
        return str(parameter.values[0]), str(parameter.values[-1])
    return f"{parameter.low:.3g}", f"{parameter.high:.3g}"


def _two_lines(path: str) -> str:
    head, _, last = path.rpartition(".")
    return f"{head}.\n{last}" if head else last
