"""A client of the embedded server and of TensorFlow Serving."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tfcsmf.errors import ServingError, nearest
from tfcsmf.serving.client_transports import (
    GrpcTransport,
    RestTransport,
    Target,
    Transport,
)

_HISTORY = "history_"


@dataclass(frozen=True)
class RankedItem:
    """One place of a ranking.

    Attributes:
      item_id: the candidate.
      score: fused score.
      objective_scores: score per objective; their weighted sum is `score`.
    """

    item_id: str
    score: float
    objective_scores: dict[str, float]


class Client:
    """Asks a server for predictions and, of tfcsmf models, for rankings.

    Connections are kept open and may be used by several threads. Attempts that
    cannot have been answered (no connection, 429, 502, 503, gRPC UNAVAILABLE) are
    repeated with growing pauses.

    Args:
      url: where the REST API is.
      model: name of the model.
      grpc: where gRPC is, such as "localhost:8500"; predictions then go there.
      version: None for the newest.
      label: instead of a version.
      timeout: seconds per attempt.
      retries: further attempts.
      backoff: seconds before the second attempt, doubled with every further one.
      description: the export's `assets.extra/cascade.json`, its path or contents;
        the embedded server has it, TensorFlow Serving does not.

    Example:
      A ranking with weights by objective, from a running server::

        client = Client("http://localhost:8501")
        client.retrieve("u1", weights={"click": 0, "conversion": 3}, k=5)
    """

    def __init__(
        self,
        url: str = "http://localhost:8501",
        model: str = "cascade",
        *,
        grpc: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        backoff: float = 0.1,
        description: Mapping[str, Any] | str | Path | None = None,
    ) -> None:
        target = Target(model, version, label, timeout, retries, backoff)
        self._rest = RestTransport(url, target)
        self._transport: Transport = GrpcTransport(grpc, target) if grpc else self._rest
        self._description = _read(description)

    def predict(
        self, inputs: Mapping[str, Any], signature_name: str = "serving_default"
    ) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          inputs: arrays or nested lists by input name, the batch first.
          signature_name: which signature.

        Returns:
          Arrays by output name; strings are `bytes`.

        Raises:
          ServingError: if the server refuses or cannot be reached.
        """
        return self._transport.predict(signature_name, inputs)

    def retrieve(
        self,
        user_id: str = "",
        histories: Mapping[str, Sequence[str]] | None = None,
        weights: Mapping[str, float] | None = None,
        k: int | None = None,
        exclude: Sequence[str] = (),
        features: Mapping[str, Any] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> list[RankedItem]:
        """Ranks the catalogue of a tfcsmf model for one query.

        Args:
          user_id: may be unknown.
          histories: item ids per event, oldest first.
          weights: by objective; the others keep the default of the export.
          k: number of items, at most `max_k` of the export; default: its k.
          exclude: item ids that must not be returned.
          features: raw user features by name; those left out are missing.
          filters: allowed values by categorical item attribute: an item needs one of
            each. A value no item has lets none pass, an empty list all.

        Returns:
          At most k items, best first.

        Raises:
          ServingError: for a name the model does not know, a value that does not
            fit, or a server that refuses or cannot be reached.
        """
        about = self.description()
        limit = _limit(about, k)
        objectives = list(about["objectives"])
        inputs = _inputs(about["query_inputs"], user_id, histories, features)
        row = _weights(objectives, about["default_weights"], weights or {})
        inputs["objective_weights"] = np.array([row], np.float32)
        inputs["exclude_item_ids"] = _strings("exclude", exclude)
        signature = "retrieve_weighted"
        if filters or limit > int(about["k"]):
            signature = "retrieve_filtered"
            inputs |= _filters(about.get("filters"), filters or {})
            inputs["k"] = np.array([limit], np.int32)
        answer = self.predict(inputs, signature)
        places = zip(
            answer["item_ids"][0],
            answer["scores"][0],
            answer["objective_scores"][0],
            strict=True,
        )
        items = [
            RankedItem(
                item_id.decode("utf-8"),
                float(score),
                dict(zip(objectives, map(float, scores), strict=True)),
            )
            for item_id, score, scores in places
            if item_id
        ]
        return items[:limit]

    def status(self) -> dict[int, str]:
        """Returns the state of every version, such as "AVAILABLE", over REST."""
        return self._rest.status()

    def metadata(self) -> dict[str, Any]:
        """Returns the signatures of the model, over REST."""
        return self._rest.metadata()

    def description(self) -> dict[str, Any]:
        """Returns what the export says of itself (`cascade.json`).

        Raises:
          ServingError: if it was not given and the server does not have it.
        """
        if self._description is None:
            try:
                self._description = self._rest.description()
            except ServingError as error:
                if error.code == "UNAVAILABLE":
                    raise
                raise ServingError(
                    "Names of objectives are needed. Received: a server without them "
                    f"({error.code}). Give Client description=<version "
                    "folder>/assets.extra/cascade.json.",
                    error.code,
                ) from error
        return self._description

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until a version is served.

        Raises:
          ServingError: if that takes longer than `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                if "AVAILABLE" in self.status().values():
                    return
                reason = "no version is available"
            except ServingError as error:
                reason = str(error)
            if time.monotonic() > end:
                raise ServingError(
                    f"The model should be served within {timeout:g} seconds. "
                    f"Received: {reason}. Look at the server's log.",
                    "DEADLINE_EXCEEDED",
                )
            time.sleep(0.05)

    def close(self) -> None:
        """Closes the connections."""
        self._rest.close()
        if self._transport is not self._rest:
            self._transport.close()

    def __enter__(self) -> Client:
        """Returns the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self.close()


def _read(
    description: Mapping[str, Any] | str | Path | None,
) -> dict[str, Any] | None:
    if isinstance(description, str | Path):
        return json.loads(Path(description).read_text(encoding="utf-8"))
    return None if description is None else dict(description)


def _limit(about: Mapping[str, Any], k: int | None) -> int:
    """The number of results to ask for."""
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


def _filters(
    known: Mapping[str, Mapping[str, Any]] | None,
    filters: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
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
        about["argument"]: _strings(name, filters.get(name, ()))
        for name, about in known.items()
    }


def _weights(
    objectives: list[str], defaults: Sequence[float], weights: Mapping[str, float]
) -> list[float]:
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


def _inputs(
    specs: Mapping[str, Mapping[str, Any]],
    user_id: str,
    histories: Mapping[str, Sequence[str]] | None,
    features: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A batch of one, by argument name; what is not given is missing."""
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
        return _strings(name, value or ())
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


def _strings(name: str, values: Sequence[str]) -> list[list[str]]:
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
