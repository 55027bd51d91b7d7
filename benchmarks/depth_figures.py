"""Draws accuracy and cost against depth, from a report of `compare_sequences.py`.

    python benchmarks/depth_figures.py COMPARISON.json [MORE.json ...] [--output F.svg]

Variants are to be named `<encoder>-<layers>`, such as heterrec-4; others are left out.
Bars are 95 % intervals over users.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import matplotlib as mpl
from matplotlib.figure import Figure

from tfcsmf.evaluation import figures as house

DEFAULT = harness.ROOT / "docs" / "heterrec_depth.svg"

Point = tuple[int, float, float, float]  # layers, value, and its interval


def curves(
    sources: Iterable[Path], seconds: bool = True
) -> dict[str, dict[str, list[Point]]]:
    """Returns the points of every encoder by what is measured, in order of depth.

    Args:
      sources: reports.
      seconds: the time of training too, which means little on a machine that others
        kept busy.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for source in sources:
        content: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        compared = content["protocols"]["standard"][content["objectives"][0]]
        for variant, entry in compared.items():
            named = re.fullmatch(r"(.+)-(\d+)", variant)
            if named is None:
                continue
            encoder, layers = named[1], int(named[2])
            values = {
                f"{content['on']} {name}": (value["mean"], *value["ci95"])
                for name, value in entry["metrics"].items()
                if name.startswith(("recall@", "ndcg@"))
            }
            if seconds:
                took = content["systems"][variant]["training_seconds"]
                values["seconds of training"] = (took, took, took)
            for name, value in values.items():
                own = found.setdefault(name, {}).setdefault(encoder, [])
                own.append((layers, *value))
    return {
        name: {encoder: sorted(points) for encoder, points in by_encoder.items()}
        for name, by_encoder in found.items()
    }


def draw(measured: dict[str, dict[str, list[Point]]], output: Path) -> None:
    """Writes one panel for everything measured, one curve per encoder."""
    style = house.theme_style("light") | {"svg.hashsalt": "depth"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.9 * len(measured), 3.6), layout="constrained")
        panels = figure.subplots(1, len(measured), squeeze=False)[0]
        for axes, (name, by_encoder) in zip(panels, measured.items(), strict=True):
            for number, (encoder, points) in enumerate(by_encoder.items()):
                layers, values, low, high = zip(*points, strict=True)
                below = [max(v - x, 0.0) for v, x in zip(values, low, strict=True)]
                above = [max(x - v, 0.0) for v, x in zip(values, high, strict=True)]
                axes.errorbar(
                    layers,
                    values,
                    yerr=[below, above],
                    marker=house.MARKERS[number],
                    color=house.theme_colour("light", number),
                    markersize=5,
                    elinewidth=1,
                    label=encoder,
                )
            axes.set_title(name)
            axes.set_xlabel("layers")
            axes.set_xticks(sorted({p[0] for ps in by_encoder.values() for p in ps}))
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=8.5)
        # No date: the same numbers then give the same bytes.
        figure.savefig(output, format="svg", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=DEFAULT)
    parser.add_argument(
        "--no-seconds", action="store_true", help="leave the time of training out"
    )
    options = parser.parse_args(argv)
    draw(curves(options.reports, not options.no_seconds), options.output)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
