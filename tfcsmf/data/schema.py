"""The schema of a trained model: what later data must be encoded with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfcsmf.data.features import FeatureEncoder
from tfcsmf.data.prepared import EntityTable, PreparedLog
from tfcsmf.errors import DataError


@dataclass(frozen=True)
class Schema:
    """Fixed vocabularies and encoders.

    Attributes:
      objectives: in cascade order.
      history_events: events that give the query a history feature.
      history_length: last events kept per history.
      user_ids: trained users; position p has the embedding row p + NUM_RESERVED.
      item_ids: trained items, likewise.
      user_encoders: fitted encoders of the user features.
      item_encoders: fitted encoders of the item features.
      user_buckets: embedding row of every hash bucket of rare users; none without.
    """

    objectives: tuple[str, ...]
    history_events: tuple[str, ...]
    history_length: int
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user_encoders: tuple[FeatureEncoder, ...]
    item_encoders: tuple[FeatureEncoder, ...]
    user_buckets: tuple[int, ...] = ()


def save_schema(prepared: PreparedLog) -> dict[str, Any]:
    """Returns the schema of a prepared log as JSON-able values."""

    def ids(table: EntityTable) -> list[str]:
        return [str(name) for name in table.ids[: table.trained]]

    def encoders(table: EntityTable) -> list[dict[str, Any]]:
        return [encoder.to_dict() for encoder in table.encoders]

    buckets = prepared.users.buckets.tolist()
    return {
        **({"user_buckets": buckets} if buckets else {}),
        "objectives": list(prepared.objectives),
        "history_events": list(prepared.history_events),
        "history_length": prepared.summary["history_length"],
        "user_ids": ids(prepared.users),
        "item_ids": ids(prepared.items),
        "user_encoders": encoders(prepared.users),
        "item_encoders": encoders(prepared.items),
    }


def load_schema(tree: Mapping[str, Any]) -> Schema:
    """Reads what `save_schema` returned.

    Raises:
      DataError: if a part is missing.
    """
    try:
        return Schema(
            objectives=tuple(tree["objectives"]),
            history_events=tuple(tree["history_events"]),
            history_length=int(tree["history_length"]),
            user_ids=tuple(tree["user_ids"]),
            item_ids=tuple(tree["item_ids"]),
            user_encoders=tuple(map(FeatureEncoder.from_dict, tree["user_encoders"])),
            item_encoders=tuple(map(FeatureEncoder.from_dict, tree["item_encoders"])),
            user_buckets=tuple(tree.get("user_buckets", ())),
        )
    except KeyError as error:
        raise DataError(
            f"A saved schema should have the key {error}. Received: {sorted(tree)}. "
            "Prepare the log again, or name the folder of a finished run."
        ) from error
