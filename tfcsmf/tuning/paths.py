"""Which paths of the configuration a sweep may search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tfcsmf.config import Config, StageConfig
from tfcsmf.errors import ConfigError, nearest

# Paths that may not be tuned, with the reason; the first that fits counts.
_MEASURED = "it decides what is measured, so trials could not be compared"
_UNUSED = "it does not change a cascade's validation"
_REFUSED = {
    "seed": _MEASURED,
    "simulator": _MEASURED,
    "evaluation": _MEASURED,
    "cascade.objectives": _MEASURED,
    "cascade.checkpoint_every": _UNUSED,
    "cascade.keep_checkpoints": _UNUSED,
    "retrieval": _UNUSED,
    "sequence": _UNUSED,
    "data": _MEASURED,
}
# What of `data` leaves the split, the catalogue and the queries alone.
_DATA = (
    *("history_length", "rows_per_user", "target_share", "visible_share"),
    "numeric_buckets",
)
_ALLOWED = {f"data.{name}" for name in (*_DATA, "max_values")}
# What of `sequence` a query tower with a sequence encoder is built from.
_ENCODER = {
    f"sequence.{name}"
    for name in (
        *("length", "width", "heads", "feed_forward", "dropout", "norm", "merge"),
        *("token_layers", "item_layers", "token_mask", "time_gaps"),
    )
}
STAGES, _STAGE = "cascade.stages", "cascade.stage"


def check_path(path: str, config: Config) -> None:
    """Refuses what a sweep may not search.

    Raises:
      ConfigError: for no path of the tree (with the nearest one), one that decides
        what is measured, or one without effect.
    """
    known = set(_paths(config))
    tunable = sorted(name for name in known if not _refusal(name, config))
    if path not in known:
        last = path.rpartition(".")[2]
        same = [name for name in tunable if name.endswith(f".{last}")]
        # The nearest of those that end alike; of all, if none does.
        hint = nearest(path, same) or nearest(path, tunable)
        if same and not hint:
            hint = f" Did you mean {same[0]!r}?"
        raise ConfigError(
            f"A search space names settings of the configuration. Received: {path!r}, "
            f"which is none.{hint} tfcsmf/config.py lists them; one stage has "
            f"{STAGES}.<objective>.<setting>."
        )
    reason = _refusal(path, config)
    if reason:
        raise ConfigError(
            f"A search space may not hold {path!r}: {reason}. Set it with --set or "
            "--config."
        )
    if path.startswith(f"{_STAGE}."):
        name = path.rpartition(".")[2]
        own = [config.cascade.stages.get(o, {}) for o in config.cascade.objectives]
        if all(name in overrides for overrides in own):
            raise ConfigError(
                f"A search space should hold settings that have an effect. Received: "
                f"{path!r}, which {STAGES} sets for every objective. Leave it out "
                f"there, or search {STAGES}.<objective>.{name}."
            )


def _paths(config: Config) -> Iterator[str]:
    """Every path of a single value, those of every stage too."""

    def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in tree.items():
            if not isinstance(value, Mapping):
                yield prefix + key
            elif f"{prefix}{key}" != STAGES:
                yield from leaves(value, f"{prefix}{key}.")

    yield from leaves(config.to_dict(), "")
    for objective in config.cascade.objectives:
        for name in StageConfig.model_fields:
            yield f"{STAGES}.{objective}.{name}"


def _refusal(path: str, config: Config) -> str | None:
    if path in _ALLOWED:
        return None
    if path in _ENCODER and config.towers.query_encoder != "pooled":
        return None
    for refused, reason in _REFUSED.items():
        if path == refused or path.startswith(f"{refused}."):
            return reason
    return None
