"""Requests and answers as command-line text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfcsmf import cli
from tfcsmf.errors import ExportError
from tfcsmf.retrieval.exported import RetrievedItem


def parse_lists(options: Sequence[str], option: str) -> dict[str, list[str]]:
    """Reads `name=a,b` options.

    Raises:
      ExportError: for an option without a name.

    Example:
      >>> parse_lists(["view=i1, i2", "cart="], "--history")
      {'view': ['i1', 'i2'], 'cart': []}
    """
    result: dict[str, list[str]] = {}
    for text in options:
        name, equals, values = text.partition("=")
        if not equals or not name.strip():
            raise ExportError(
                f"{option} takes name=value, for example {option} view=i1,i2. "
                f"Received: {text!r}."
            )
        result.setdefault(name.strip(), []).extend(cli.split_names(values) or ())
    return result


def parse_weights(text: str | None) -> dict[str, float]:
    """Reads `view=1,buy=3`.

    Raises:
      ExportError: for anything but names and numbers.

    Example:
      >>> parse_weights("view=1, buy=-0.5,")
      {'view': 1.0, 'buy': -0.5}
    """
    result: dict[str, float] = {}
    for part in cli.split_names(text) or ():
        name, _, value = part.partition("=")
        try:
            result[name.strip()] = float(value)
        except ValueError:
            raise ExportError(
                "--weights takes objective=number, for example view=1,buy=3. "
                f"Received: {part!r}."
            ) from None
    return result


def parse_features(
    options: Sequence[str], description: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads `name=value` options by the kinds of the model's features.

    Raises:
      ExportError: for an option without a name, or text where numbers belong.
    """
    inputs = description["query_inputs"]
    result: dict[str, Any] = {}
    for text in options:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ExportError(
                "--feature takes name=value, for example --feature age=30. "
                f"Received: {text!r}."
            )
        kind = inputs.get(name, {}).get("kind")
        if kind == "multi":
            result[name] = cli.split_names(value)
        elif kind in ("numeric", "vector", "times"):
            number = int if kind == "times" else float
            try:
                result[name] = [number(part) for part in value.split(",")]
            except ValueError:
                raise ExportError(
                    f"The {kind} feature {name!r} should be given as numbers, "
                    f"several separated by commas, times whole. Received: {value!r}."
                ) from None
        else:
            result[name] = value
    return result


def format_items(items: Sequence[RetrievedItem], objectives: Sequence[str]) -> str:
    """Returns a table: rank, item id, fused score, score per objective.

    Example:
      >>> print(format_items([RetrievedItem("i7", 1.5, {"buy": 0.5})], ["buy"]))
      rank  item_id   score     buy
         1  i7       1.5000  0.5000
    """
    if not items:
        return "No items are left: all are excluded, or pass no filter."
    rows = [["rank", "item_id", "score", *objectives]]
    for rank, item in enumerate(items, start=1):
        scores = [item.score, *(item.objective_scores[name] for name in objectives)]
        name = item.item_id
        if not name.isprintable():  # a line end would break the table
            name = repr(name)[1:-1]
        rows.append([str(rank), name, *(f"{score:.4f}" for score in scores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        cells[1] = row[1].ljust(widths[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
