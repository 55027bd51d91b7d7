"""Asking an exported model from Python."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import QUERY_ID, history_name
from tfcsmf.errors import ExportError, nearest

DESCRIPTION = "assets.extra/cascade.json"
QUERIES = "assets.extra/calibration_queries.npy"
# An export is the end of a run; there is no command that makes it alone.
_AGAIN = "run pipelines/run_cascade.py again with"


@dataclass(frozen=True)
class RetrievedItem:
    """One place of a ranking.

    Attributes:
      item_id: the candidate.
      score: fused score.
      objective_scores: calibrated score per objective; their sum, weighted as
        requested, is `score`.
    """

    item_id: str
    score: float
    objective_scores: dict[str, float]


class ExportedModel:
    """A version of an exported model.

    Args:
      path: a folder of versions, the folder of a run (which has them in
        `serving`), or one version.
      version: the version to load; default the newest.

    Attributes:
      path: the version folder.
      description: contents of `cascade.json`.
      saved_model: what TensorFlow loaded.
      signatures: the serving signatures, for whole batches.

    Raises:
      ExportError: if there is no such version or it cannot be loaded.
    """

    def __init__(
        self, path: str | os.PathLike[str], version: int | None = None
    ) -> None:
        self.path = find_version(path, version)
        try:
            text = (self.path / DESCRIPTION).read_text(encoding="utf-8")
            self.description: dict[str, Any] = json.loads(text)
            kind = self.description["index"]["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(self.path, error) from error
        if kind == "scann":
            _load_scann_operations(self.path)
        try:
            self.saved_model = tf.saved_model.load(str(self.path))
        except Exception as error:  # TensorFlow raises many kinds
            raise _damaged(self.path, error) from error
        self.signatures: Mapping[str, Any] = self.saved_model.signatures

    @property
    def objectives(self) -> tuple[str, ...]:
        """Objectives in cascade order."""
        return tuple(self.description["objectives"])

    @property
    def k(self) -> int:
        """Results of a request that does not say how many."""
        return int(self.description["k"])

    @property
    def max_k(self) -> int:
        """Most results a request can get; earlier exports have one k."""
        return int(self.description.get("max_k", self.k))

    def retrieve(
        self,
        user_id: str = "",
        histories: Mapping[str, Sequence[str]] | None = None,
        weights: Mapping[str, float] | None = None,
        k: int | None = None,
        exclude: Sequence[str] = (),
        features: Mapping[str, Any] | None = None,
        filters: Mapping[str, Sequence[str]] | None = None,
    ) -> list[RetrievedItem]:
        """Ranks the catalogue for one query.

        Args:
          user_id: may be unknown.
          histories: item ids per event, oldest first; events left out are empty.
          weights: by objective; the others keep their default weight.
          k: number of items, at most `max_k`; default: the exported k.
          exclude: item ids that must not be returned.
          features: raw user features by name; those left out are missing. So are
            times, `history_<event>/time`, of a model that takes them.
          filters: allowed values by categorical item attribute: an item needs one of
            each. A value no item has lets none pass, an empty list all.

        Returns:
          At most k items, best first.

        Raises:
          ExportError: for a name the model does not know, or a value that does not
            fit.
        """
        limit = self.k if k is None else self._check_k(k)
        arguments = self._arguments(user_id, histories or {}, features or {})
        arguments["objective_weights"] = tf.constant([self._weights(weights or {})])
        arguments["exclude_item_ids"] = _strings(exclude)
        signature = "retrieve_weighted"
        if filters or limit > self.k:
            signature = "retrieve_filtered"
            arguments |= self._filters(filters or {})
            arguments["k"] = tf.constant([min(limit, self.max_k)])
        answer = self.signatures[signature](**arguments)
        ids, scores = answer["item_ids"][0].numpy(), answer["scores"][0].numpy()
        by_objective = answer["objective_scores"][0].numpy()
        return [
            RetrievedItem(
                ids[place].decode("utf-8"),
                float(scores[place]),
                dict(
                    zip(self.objectives, map(float, by_objective[place]), strict=True)
                ),
            )
            for place in range(min(limit, len(ids)))
            if ids[place]
        ]

    def _check_k(self, k: int) -> int:
        if k < 1:
            raise ExportError(
                f"k should be at least 1, and {self.max_k} at most. Received: {k}. "
                f"Leave it out for {self.k} results."
            )
        # A smaller catalogue has nothing beyond it anyway.
        if k > self.max_k and self.max_k < self.description["catalogue"]:
            raise ExportError(
                f"k should be between 1 and {self.max_k}, the most results the model "
                f"was exported for. Received: {k}. Ask for fewer, or {_AGAIN} "
                f"--set retrieval.max_k={k}."
            )
        return k

    def _weights(self, weights: Mapping[str, float]) -> list[float]:
        values = list(map(float, self.description["default_weights"]))
        for name, weight in weights.items():
            position = _position(name, self.objectives, "objective")
            if not np.isfinite(weight):
                raise ExportError(
                    f"Weights should be finite numbers. Received: {name}={weight}. "
                    "Leave the objective out for its default weight, or give 0."
                )
            values[position] = float(weight)
        return values

    def _filters(self, filters: Mapping[str, Sequence[str]]) -> dict[str, tf.Tensor]:
        known = self.description.get("filters")
        if known is None:
            raise ExportError(
                "A model to filter should have the signature retrieve_filtered. "
                f"Received: {str(self.path)!r}, exported before there was one. Give it "
                "one with pipelines/refresh_index.py."
            )
        for name in filters:
            _position(name, list(known), "attribute to filter by")
        return {
            about["argument"]: _strings(filters.get(name, ()))
            for name, about in known.items()
        }

    def _arguments(
        self,
        user_id: str,
        histories: Mapping[str, Sequence[str]],
        features: Mapping[str, Any],
    ) -> dict[str, tf.Tensor]:
        inputs = self.description["query_inputs"]
        prefix = history_name("")
        events = [
            name.removeprefix(prefix)
            for name, spec in inputs.items()
            if spec["kind"] == "history"
        ]
        known_features = [
            name
            for name, spec in inputs.items()
            if spec["kind"] not in ("history", "id")
        ]
        values: dict[str, Any] = {QUERY_ID: user_id}
        for event, items in histories.items():
            _position(event, events, "history event")
            values[history_name(event)] = items
        for name, value in features.items():
            _position(name, known_features, "query feature")
            values[name] = value
        return {
            spec["argument"]: _tensor(name, spec, values.get(name))
            for name, spec in inputs.items()
        }


def version_numbers(base: Path) -> list[int]:
    """Returns the versions in a folder, ascending; empty if there is none."""
    if not base.is_dir():
        return []
    names = [entry.name for entry in base.iterdir() if entry.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def find_version(path: str | os.PathLike[str], version: int | None = None) -> Path:
    """Returns the folder of a version; see `ExportedModel`.

    Raises:
      ExportError: if there is none.
    """
    base = Path(path)
    if not base.is_dir():
        raise ExportError(
            f"An exported model should be a folder. Received: {str(base)!r}, which "
            "does not exist. Name the folder of a finished run."
        )
    if (base / "saved_model.pb").exists() or (base / DESCRIPTION).exists():
        return base
    if (base / "serving").is_dir():
        base = base / "serving"
    versions = version_numbers(base)
    if not versions:
        raise ExportError(
            f"{str(base)!r} should hold an exported model in a folder named by its "
            "version, such as 1. Received: none. Wait for the run to finish, or name "
            "another folder."
        )
    if version is not None and version not in versions:
        raise ExportError(
            f"The version should be one of {versions}. Received: {version}. Leave it "
            "out for the newest."
        )
    return base / str(versions[-1] if version is None else version)


def _damaged(path: Path, error: Exception) -> ExportError:
    others = []
    if path.name.isdigit():
        others = [n for n in version_numbers(path.parent) if n != int(path.name)]
    advice = f"Load version {others[-1]} instead, or copy" if others else "Copy"
    first = (str(error).strip().splitlines() or [""])[0]
    return ExportError(
        f"{str(path)!r} should hold a complete exported model. Received: "
        f"{type(error).__name__}: {first} {advice} the version again from where it "
        "was made, or run pipelines/run_cascade.py again."
    )


def _load_scann_operations(path: Path) -> None:
    try:
        import scann  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"{str(path)!r} has a ScaNN index and needs the package scann. Received: "
            f"{error}. Install it, or {_AGAIN} --set retrieval.index=ivf."
        ) from error


def _position(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise ExportError(
            f"Every {what} should be one the model was trained with. Received: "
            f"{name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}."
        )
    return list(names).index(name)


def _strings(values: Sequence[str]) -> tf.Tensor:
    if isinstance(values, str):
        raise ExportError(
            "Item ids and values should be a list of strings. Received: the string "
            f"{values!r}. Put it into a list."
        )
    row = [str(value) for value in values]
    return tf.constant([row], tf.string, shape=[1, len(row)])


def _times(name: str, values: Sequence[int]) -> tf.Tensor:
    try:
        return tf.constant([np.asarray(values, np.int64).reshape(-1)], tf.int64)
    except (TypeError, ValueError, OverflowError):
        raise ExportError(
            f"{name!r} should be a list of whole numbers, one per item of the history. "
            f"Received: {values!r}. Give times as the event log has them."
        ) from None


def _tensor(name: str, spec: Mapping[str, Any], value: Any) -> tf.Tensor:
    """A batch of one; `None` is a missing value."""
    kind = spec["kind"]
    if kind in ("id", "categorical"):
        return tf.constant(["" if value is None else str(value)])
    if kind in ("history", "multi"):
        return _strings(() if value is None else value)
    if kind == "times":
        return _times(name, () if value is None else value)
    width = spec["width"] if kind == "vector" else 1
    if value is None:
        value = [np.nan] * width
    try:
        numbers = np.asarray(value, np.float32).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.zeros(0, np.float32)
    if len(numbers) != width:
        raise ExportError(
            f"The feature {name!r} should be {width} number(s). Received: {value!r}. "
            "Leave it out where it is missing."
        )
    return tf.constant(numbers if kind == "numeric" else numbers[np.newaxis])
