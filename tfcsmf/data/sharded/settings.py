"""Which settings decide what is prepared, and whether a run has the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfcsmf.config import Config
from tfcsmf.data.prepare import wants_times
from tfcsmf.errors import ConfigError

# Settings of `data` that training alone uses.
_NOT_PREPARED = ("prepared", "history_length", "target_share", "visible_share")
# Settings by other names than in the configuration.
_NAMES = {
    "objectives": "cascade.objectives",
    "later_events": "cascade.later_weight > 0",
    "history_times": "towers.history_times, and towers.query_encoder other than pooled",
}


def prepared_settings(config: Config) -> dict[str, Any]:
    """Returns the part of a configuration that decides what is prepared."""
    tree = config.to_dict()
    data = {k: v for k, v in tree["data"].items() if k not in _NOT_PREPARED}
    return {
        "seed": config.seed,
        "data": data,
        "objectives": tree["cascade"]["objectives"],
        "later_events": config.cascade.later_weight > 0,
        "history_times": wants_times(config),
    }


def with_prepared(
    tree: Mapping[str, Any], settings: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """Returns a configuration tree that trains from a prepared folder.

    Args:
      tree: what was given; it goes first.
      settings: of the preparation, for what was not given.
      path: of the folder.
    """
    defaults = {
        "seed": settings["seed"],
        "data": settings["data"],
        "cascade": {"objectives": settings["objectives"]},
    }
    merged = dict(tree)
    for name, values in defaults.items():
        given = merged.get(name)
        if given is None:
            merged[name] = values
        elif isinstance(given, Mapping) and isinstance(values, Mapping):
            merged[name] = {**values, **given}
    data = merged["data"]
    if isinstance(data, Mapping):  # or the configuration will say what is wrong
        merged["data"] = {**data, "prepared": path}
    return merged


def check_settings(settings: Mapping[str, Any], config: Config, path: str) -> None:
    """Refuses a configuration that says other things about data than was prepared.

    The seed may differ: that of the preparation has divided the log, that of the run
    draws everything else.

    Args:
      settings: of the preparation.
      config: of the run.
      path: of the folder, for the message.

    Raises:
      ConfigError: with every difference.
    """
    before, now = _flat(settings), _flat(prepared_settings(config))
    changes = [
        f"  {name}: {before.get(name)!r} prepared, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ConfigError(
            f"What a run says of its data should be what {path!r} was prepared with. "
            "Received other values:\n" + "\n".join(changes) + "\n"
            "Leave them out, or prepare the log with them (pipelines/prepare.py)."
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"data.{name}": value for name, value in settings["data"].items()}
    return flat | {shown: settings[name] for name, shown in _NAMES.items()}
