"""The report of a sweep: JSON and CSV for programs, a table and a page for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfcsmf.evaluation import figures
from tfcsmf.evaluation.report import render
from tfcsmf.evaluation.tables import plain
from tfcsmf.files import write_atomic
from tfcsmf.tuning import sweep_figures
from tfcsmf.tuning.space import Space

_SHOWN = 30  # trials in the terminal table


def write_sweep(
    directory: str | Path, content: Mapping[str, Any], space: Space
) -> Path:
    """Writes `report/` of a sweep; every file atomically, `sweep.json` last.

    Besides it `trials.csv` (a row per trial), `sweep.txt` (the table), the figures
    `history.png`, `coordinates.png` and, with several objectives, `pareto.png`, and
    `index.html`.

    Args:
      directory: output folder of the sweep.
      content: what `run_sweep` returns.
      space: what was searched.

    Returns:
      The path of `index.html`.
    """
    content = plain(content)
    folder = Path(directory) / "report"
    drawn: list[str] = []
    for theme in figures.THEMES:
        images = sweep_figures.draw(content, space, theme)
        suffix = "" if theme == "light" else f"_{theme}"
        for name, image in images.items():
            write_atomic(folder / f"{name}{suffix}.png", image)
        drawn = list(images)
    write_atomic(folder / "trials.csv", _csv(content))
    write_atomic(folder / "sweep.txt", format_sweep(content))
    rows = ranked(content)
    page = render(
        "sweep.html.j2",
        title="Sweep: " + " > ".join(content["objectives"]),
        sweep=content,
        rows=rows,
        short=short_names(content),
        drawn=drawn,
        text=text_of,
        counts=counts(content),
    )
    write_atomic(folder / "index.html", page)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "sweep.json", text + "\n")
    return folder / "index.html"


def ranked(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the reference and the trials, best first; unfinished ones last."""
    reference = content["reference"] | {"settings": content["current"]}
    order = {"finished": 0, "pruned": 1, "failed": 2, "running": 3}
    return sorted(
        (reference, *content["trials"]),
        key=lambda trial: (order[trial["status"]], -(trial["score"] or 0.0)),
    )


def counts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how many trials there are of each kind, and training seconds."""
    trials = content["trials"]
    found: dict[str, Any] = {
        status: sum(trial["status"] == status for trial in trials)
        for status in ("finished", "pruned", "failed")
    }
    for name in ("seconds", "seconds_reused"):
        found[name] = sum(trial[name] for trial in trials)
    return found


def format_sweep(content: Mapping[str, Any]) -> str:
    """Returns the best trials as a plain-text table.

    `*` marks the Pareto set: no other finished trial is as good in every objective
    and better in one.
    """
    short = short_names(content)
    objectives = content["objectives"]
    rows = [["trial", "status", "score", *objectives, *short.values()]]
    chosen = ranked(content)
    for trial in chosen[:_SHOWN]:
        name = trial["name"] + ("*" if trial["name"] in content["pareto"] else "")
        values = [text_of(trial["values"].get(o)) for o in objectives]
        settings = [text_of(trial["settings"].get(path)) for path in short]
        status = trial["status"]
        rows.append([name, status, text_of(trial["score"]), *values, *settings])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(chosen) > _SHOWN:
        lines.append(f"... and {len(chosen) - _SHOWN} more in report/trials.csv")
    return "\n".join([*_summary(content), "", *lines]) + "\n"


def _summary(content: Mapping[str, Any]) -> list[str]:
    done = counts(content)
    by_name = {trial["name"]: trial for trial in ranked(content)}
    best = by_name[content["best"]]
    lines = [
        f"{content['tuner']}: {done['finished']} trials finished, {done['pruned']} "
        f"stopped early, {done['failed']} failed; trained for {done['seconds']:.0f} s, "
        f"{done['seconds_reused']:.0f} s reused",
        f"validation {content['metric']} (unseen), score by {content['scalarise']}, "
        "1 = the configuration as it is",
    ]
    if best["name"] == "reference":
        lines.append("no trial is better than the configuration as it is")
    else:
        lines.append(f"best: trial {best['name']}, score {best['score']:.4f}")
    lines.append(f"hypervolume of the Pareto set: {content['hypervolume']:.4f}")
    return lines


def short_names(content: Mapping[str, Any]) -> dict[str, str]:
    """Returns path -> the shortest end of it that no other path has.

    Example:
      >>> space = {"a.x.tau": {}, "a.y.tau": {}, "b.rate": {}}
      >>> list(short_names({"space": space}).values())
      ['x.tau', 'y.tau', 'rate']
    """
    paths = list(content["space"])

    def end(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    names = {}
    for path in paths:
        parts = 1
        while sum(end(other, parts) == end(path, parts) for other in paths) > 1:
            parts += 1
        names[path] = end(path, parts)
    return names


def text_of(value: Any) -> str:
    """Returns a value for a table.

    Example:
      >>> text_of(0.12345678), text_of(None), text_of([64, 32])
      ('0.1235', '-', '[64, 32]')
    """
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(content: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    objectives, paths = content["objectives"], list(content["space"])
    metric = content["metric"]
    writer = csv.writer(stream, lineterminator="\n")
    head = ["trial", "status", "score", "pareto", "epochs", "seconds", "seconds_reused"]
    writer.writerow([*head, *(f"{metric} {o}" for o in objectives), *paths, "error"])
    for trial in ranked(content):
        writer.writerow(
            [
                trial["name"],
                trial["status"],
                trial["score"],
                trial["name"] in content["pareto"],
                trial["epochs"],
                trial["seconds"],
                trial["seconds_reused"],
                *(trial["values"].get(name) for name in objectives),
                *(trial["settings"].get(path) for path in paths),
                trial["error"],
            ]
        )
    return stream.getvalue()
