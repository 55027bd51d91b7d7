"""What a run trains on: a log in memory, or a prepared folder."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfcsmf.cascade.model import CSMF
from tfcsmf.cascade.stored import StoredTrainer
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.workers import Workers
from tfcsmf.config import Config
from tfcsmf.data.prepare import check_catalogue, prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.schema import save_schema
from tfcsmf.data.sharded.folder import PreparedFolder
from tfcsmf.data.sharded.settings import check_settings
from tfcsmf.errors import ConfigError


@dataclass(frozen=True)
class RunData:
    """The log of a run.

    Attributes:
      log: all of it; or of a prepared folder a sample of its users, and all validation
        queries. The sample stands for all users where a few are looked at: what output
        dimensions do, whether frozen vectors stay, how well an index finds.
      folder: what batches and test queries are read from, `None` for `log`.
      first_stage: > 0 where a trained model is extended.
    """

    log: PreparedLog
    folder: PreparedFolder | None
    first_stage: int

    @classmethod
    def read(cls, config: Config, schema: Mapping[str, Any] | None) -> RunData:
        """Reads what `config.data` names.

        Args:
          config: of the run.
          schema: of the trained model that is extended, if one is.

        Raises:
          ConfigError: if the configuration says otherwise than the folder was prepared
            with, or a model is to be extended from a folder.
          DataError: if the log breaks a rule or has one item, or the folder is damaged.
        """
        folder = _open_folder(config, extend=schema is not None)
        if folder is not None:
            return cls(_read_sample(folder, config), folder, 0)
        first_stage = 0 if schema is None else len(schema["objectives"])
        log = prepare(config, schema)
        check_catalogue(log.items.size)
        return cls(log, None, first_stage)

    def schema(self) -> dict[str, Any]:
        """Returns what lies beside the checkpoints, and tells one log from another."""
        schema = save_schema(self.log) | {"examples": fingerprint(self.log)}
        if self.folder is not None:
            schema["prepared"] = self.folder.fingerprint
        return schema

    def trainer(
        self,
        config: Config,
        model: CSMF,
        path: str | Path,
        show_progress: bool,
        workers: Workers | None,
    ) -> CascadeTrainer:
        """Returns the trainer; arguments as for `CascadeTrainer`."""
        if self.folder is not None:
            return StoredTrainer(
                config, self.folder, self.log, model, path, show_progress, workers
            )
        return CascadeTrainer(
            config, self.log, model, path, self.first_stage, show_progress, workers
        )

    def test_parts(self) -> Iterator[PreparedLog]:
        """Yields logs that have the test queries of some users each."""
        if self.folder is None:
            yield self.log
        else:
            yield from self.folder.test_parts()


def fingerprint(log: PreparedLog) -> dict[str, list[int]]:
    """Returns the number of examples of every objective and a checksum of them."""
    return {
        name: [
            len(examples.pairs),
            zlib.crc32(examples.pairs.items.tobytes()),
            zlib.crc32(examples.pairs.users.tobytes()),
        ]
        for name, examples in log.train.items()
    }


def _open_folder(config: Config, extend: bool) -> PreparedFolder | None:
    """Opens the folder that a configuration trains from, `None` without one."""
    path = config.data.prepared
    if path is None:
        return None
    if extend:
        raise ConfigError(
            "A model is extended by the ids and features it knows, which a folder was "
            f"not prepared with. Received: --extend, and the prepared log {path!r}. "
            "Leave --prepared out and give the log itself (--events)."
        )
    for objective in config.cascade.objectives:
        if config.sampler(objective) == "cross_batch":
            # Said here, before anything is written.
            raise ConfigError(
                "Negatives of earlier batches need the positives of all users in "
                f"memory. Received: cross_batch for {objective!r}, and the prepared "
                f"log {path!r}. Choose another loss.negatives.sampler, or give the log "
                "itself (--events)."
            )
    folder = PreparedFolder.open(path)
    check_settings(folder.tree["config"], config, path)
    return folder


def _read_sample(folder: PreparedFolder, config: Config) -> PreparedLog:
    log = folder.sample()
    notes = {
        "history_length": config.data.history_length,
        "prepared": {
            "folder": folder.path,
            "fingerprint": folder.fingerprint,
            "seed": folder.tree["config"]["seed"],
            "shards": len(folder.shards),
            "users_in_memory": len(log.users_here),
        },
    }
    return dataclasses.replace(log, summary=log.summary | notes)
