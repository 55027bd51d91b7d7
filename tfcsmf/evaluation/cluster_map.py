"""The picture of semantic clusters: where items are, and how large clusters are."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tfcsmf.evaluation.figures import THEMES, ThemeName, png, theme_colour, theme_style

_POINTS = 5000
_NAMED = 6  # clusters with a colour of their own: the largest


def cluster_map(places: np.ndarray, first: np.ndarray, theme: ThemeName) -> bytes:
    """Draws items on a plane, the largest clusters in colour, and all sizes.

    Args:
      places: float [C, 2]; see `SemanticClusters.places`.
      first: int [C], clusters; items below 0 are left out.
      theme: of the page.
    """
    sizes = np.bincount(first[first >= 0])
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(len(sizes), np.int64)
    rank[order] = np.arange(len(sizes))
    shown = np.flatnonzero(first >= 0)
    if len(shown) > _POINTS:
        shown = np.random.default_rng(0).choice(shown, _POINTS, replace=False)
    ranks = rank[first[shown]]
    rest = THEMES[theme].faint
    with mpl.rc_context(theme_style(theme)):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
        for number in range(_NAMED, -1, -1):
            own = ranks == number if number < _NAMED else ranks >= _NAMED
            colour = theme_colour(theme, number) if number < _NAMED else rest
            left.scatter(*places[shown[own]].T, s=5, color=colour, linewidths=0)
        left.set_title("items; the largest clusters in colour")
        left.set_xlabel("first principal direction")
        left.set_ylabel("second")
        named = min(_NAMED, len(sizes))
        colours = [theme_colour(theme, n) for n in range(named)]
        colours += [rest] * (len(sizes) - named)
        right.bar(np.arange(len(sizes)), sizes[order], color=colours, width=1.0)
        right.set_title("clusters of the first level")
        right.set_xlabel("by size")
        right.set_ylabel("items")
        return png(figure)
