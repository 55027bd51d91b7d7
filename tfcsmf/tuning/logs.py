"""The logs that trials see: prepared, and without test data."""

from __future__ import annotations

from dataclasses import replace

from tfcsmf.cascade.run_data import RunData
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.evaluation.protocols import apply_protocol
from tfcsmf.tuning.stage_cache import log_fingerprint


class Logs:
    """Logs, or prepared folders, by the data section, without test data; keeps two.

    Args:
      config: of the sweep; its own log is kept for good.
    """

    def __init__(self, config: Config) -> None:
        self._base = config.data
        self._kept: dict[str, tuple[RunData, str]] = {}

    def __call__(self, config: Config) -> tuple[RunData, str]:
        """Returns what a configuration trains on and its fingerprint."""
        name = "base" if config.data == self._base else config.data.model_dump_json()
        if name not in self._kept:
            base = {key: self._kept[key] for key in ("base",) if key in self._kept}
            data = RunData.read(config, None)
            log = replace(data.log, test={}, test_histories=data.log.train_histories)
            fingerprint = log_fingerprint(log)
            if data.folder is not None:  # of which the log is a sample
                fingerprint += f" {data.folder.fingerprint}"
            self._kept = base | {name: (replace(data, log=log), fingerprint)}
        return self._kept[name]


def validation_queries(log: PreparedLog) -> dict[str, int]:
    """Returns by objective how many queries validation has (unseen protocol)."""
    return {
        name: len(apply_protocol(queries, "unseen").rows)
        for name, queries in log.validation.items()
    }
