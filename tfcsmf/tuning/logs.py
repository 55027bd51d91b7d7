"""The logs that trials see: prepared, and without test data."""

from __future__ import annotations

from dataclasses import replace

from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.evaluation.protocols import apply_protocol
from tfcsmf.tuning.stage_cache import log_fingerprint


class Logs:
    """Prepared logs by the data section, without test data; keeps two.

    Args:
      config: of the sweep; its own log is kept for good.
    """

    def __init__(self, config: Config) -> None:
        self._base = config.data
        self._kept: dict[str, tuple[PreparedLog, str]] = {}

    def __call__(self, config: Config) -> tuple[PreparedLog, str]:
        """Returns the log of a configuration and its fingerprint."""
        name = "base" if config.data == self._base else config.data.model_dump_json()
        if name not in self._kept:
            base = {key: self._kept[key] for key in ("base",) if key in self._kept}
            log = prepare(config)
            log = replace(log, test={}, test_histories=log.train_histories)
            self._kept = base | {name: (log, log_fingerprint(log))}
        return self._kept[name]


def validation_queries(log: PreparedLog) -> dict[str, int]:
    """Returns by objective how many queries validation has (unseen protocol)."""
    return {
        name: len(apply_protocol(queries, "unseen").rows)
        for name, queries in log.validation.items()
    }
