"""What a client is asked, as inputs of a signature; without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfcsmf.errors import ServingError, nearest

_HISTORY = "history_"


def query_limit(about: Mapping[str, Any], k: int | None) -> int:
    """Returns the number of results to ask for.

    Raises:
      ServingError: if it is out of range.
    """
    usual = int(about["k"])
    most = int(about.get("max_k", usual))  # earlier exports have one k
    if k is None:
        return usual
    # A smaller catalogue has nothing beyond it anyway.
    if k < 1 or (k > most and most < about["catalogue"]):
        raise ServingError(
            f"k should be at least 1, and {most} at most. Received: {k}. Leave it out "
            f"for {usual} results, or export the model with retrieval.max_k={k}.",
            "INVALID_ARGUMENT",
        )
    return min(k, most)


def query_filters(
    known: Mapping[str, Mapping[str, Any]] | None,
    filters: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Returns the allowed values by argument name; [""] where any will do.

    Raises:
      ServingError: for an unknown attribute, or a model without filters.
    """
    if known is None:
        raise ServingError(
            "A model to filter should have the signature retrieve_filtered. Received: "
            "one exported before there was one. Give it one with "
            "pipelines/refresh_index.py.",
            "INVALID_ARGUMENT",
        )
    for name in filters:
        _check_name(name, list(known), "attribute to filter by")
    return {
        about["argument"]: strings(name, filters.get(name, ()))
        for name, about in known.items()
    }


def query_weights(
    objectives: list[str], defaults: Sequence[float], weights: Mapping[str, float]
) -> list[float]:
    """Returns a weight per objective, the default where none is given.

    Raises:
      ServingError: for an unknown objective, or a weight that is not finite.
    """
    values = list(map(float, defaults))
    for name, weight in weights.items():
        _check_name(name, objectives, "objective")
        if not math.isfinite(weight):
            raise ServingError(
                f"Weights should be finite numbers. Received: {name}={weight}. Leave "
                "the objective out for its default weight, or give 0.",
                "INVALID_ARGUMENT",
            )
        values[objectives.index(name)] = float(weight)
    return values


def query_inputs(
    specs: Mapping[str, Mapping[str, Any]],
    user_id: str,
    histories: Mapping[str, Sequence[str]] | None,
    features: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns a batch of one, by argument name; what is not given is missing.

    Raises:
      ServingError: for an unknown event or feature, or a value that does not fit.
    """
    kinds = {name: spec["kind"] for name, spec in specs.items()}
    events = [
        n.removeprefix(_HISTORY) for n, kind in kinds.items() if kind == "history"
    ]
    others = [n for n, kind in kinds.items() if kind not in ("history", "id")]
    given: dict[str, Any] = {n: user_id for n, kind in kinds.items() if kind == "id"}
    for event, items in (histories or {}).items():
        _check_name(event, events, "history event")
        given[_HISTORY + event] = items
    for name, value in (features or {}).items():
        _check_name(name, others, "query feature")
        given[name] = value
    return {
        spec["argument"]: _value(name, spec, given.get(name))
        for name, spec in specs.items()
    }


def _value(name: str, spec: Mapping[str, Any], value: Any) -> Any:
    kind = spec["kind"]
    if kind in ("id", "categorical"):
        return ["" if value is None else str(value)]
    if kind in ("history", "multi"):
        return strings(name, value or ())
    if kind == "times":
        # Empty lists would lose their type on the way; 0 is a time not given.
        return np.asarray(value if value else [0], np.int64).reshape(1, -1)
    width = spec["width"] if kind == "vector" else 1
    numbers = np.full(width, np.nan) if value is None else np.asarray(value)
    numbers = numbers.astype(np.float32).reshape(-1)
    if len(numbers) != width:
        raise ServingError(
            f"The feature {name!r} should be {width} number(s). Received: {value!r}. "
            "Leave it out where it is missing.",
            "INVALID_ARGUMENT",
        )
    return numbers if kind == "numeric" else numbers[np.newaxis]


def strings(name: str, values: Sequence[str]) -> list[list[str]]:
    """Returns a batch of one list, which is not empty.

    Raises:
      ServingError: for a string instead of a list.
    """
    if isinstance(values, str):
        raise ServingError(
            f"{name!r} should be a list of strings. Received: the string {values!r}. "
            "Put it into a list.",
            "INVALID_ARGUMENT",
        )
    # Empty lists would lose their type on the way.
    return [list(map(str, values)) or [""]]


def _check_name(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        raise ServingError(
            f"Every {what} should be one the model was trained with. Received: "
            f"{name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.",
            "INVALID_ARGUMENT",
        )
