"""A client of the embedded server and of TensorFlow Serving."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tfcsmf.errors import ServingError
from tfcsmf.serving.client_queries import (
    query_filters,
    query_inputs,
    query_limit,
    query_weights,
    strings,
)
from tfcsmf.serving.client_transports import (
    GrpcTransport,
    RestTransport,
    Target,
    Transport,
)


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
        limit = query_limit(about, k)
        objectives = list(about["objectives"])
        inputs = query_inputs(about["query_inputs"], user_id, histories, features)
        row = query_weights(objectives, about["default_weights"], weights or {})
        inputs["objective_weights"] = np.array([row], np.float32)
        inputs["exclude_item_ids"] = strings("exclude", exclude)
        signature = "retrieve_weighted"
        if filters or limit > int(about["k"]):
            signature = "retrieve_filtered"
            inputs |= query_filters(about.get("filters"), filters or {})
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
