"""Systems and ablations side by side: train, measure, compare, report. Resumable."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tfcsmf.baselines import measured
from tfcsmf.baselines.comparison_report import write_comparison
from tfcsmf.baselines.measured import Measured
from tfcsmf.baselines.registry import ABLATIONS, SYSTEMS, check_name, make_system
from tfcsmf.cascade.run import fingerprint
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.schema import save_schema
from tfcsmf.errors import CheckpointError, ConfigError
from tfcsmf.evaluation.protocols import PROTOCOLS
from tfcsmf.files import write_atomic

_LOG = logging.getLogger(__name__)

Part = Literal["test", "validation"]
_STATUS = "comparison"  # in config.yaml of the folder
REFERENCE = "csmf"  # what the others are compared with


class Comparison:
    """Runs systems with several seeds on one log, and reports what all achieved.

    A seed decides everything random: the split where the log has none, validation
    pairs, the simulator's log, initial values, batches. Systems with the same seed see
    the same. In `output`:

        config.yaml                      the configuration, its seed apart
        runs/<training>/seed<n>/         checkpoints; shared by systems that only use a
                                         training differently
        results/<part>/<system>/seed<n>  values per user (.npz) and costs (.json)
        report/                          see `write_comparison`

    Args:
      config: of all systems.
      output: the folder. One that was used before has to have been for this
        configuration: what is finished there is not repeated, what was killed goes on.
      on: the queries that are measured. Choose between settings on `validation`,
        whose pairs training also stops on, and look at `test` once.
      show_progress: draw progress bars on stderr.

    Raises:
      CheckpointError: if `output` belongs to another configuration or log.
    """

    def __init__(
        self,
        config: Config,
        output: str | Path,
        on: Part = "test",
        show_progress: bool = True,
    ) -> None:
        # Seeds are given to `run`; this one draws the bootstrap.
        self.config = Config.from_dict(config.to_dict() | {"seed": 0})
        self.path = Path(output)
        self.on = on
        self.show_progress = show_progress
        self._claimed(write=False)

    def _claimed(self, write: bool) -> None:
        """Refuses a folder of something else; makes one that is new its own.

        Args:
          write: begin a new folder, once nothing more can be refused.

        Raises:
          CheckpointError: if `output` belongs to another configuration.
        """
        folder = RunFolder(self.path)
        section = folder.run_section()
        if section and section["status"] != _STATUS:
            raise CheckpointError(
                "--output should be a folder for comparisons. Received: "
                f"{str(self.path)!r}, which holds another run. Choose another one."
            )
        if section:
            folder.check_same(self.config, None, "A comparison")
        elif write:
            with folder.locked():
                folder.write_config(self.config, _STATUS, None, False)

    def run(self, systems: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """Trains and measures what is missing; returns the report of all results.

        Args:
          systems: names of `registry.SYSTEMS` or `registry.ABLATIONS`.
          seeds: distinct, >= 0.

        Returns:
          The contents of `report/comparison.json`.

        Raises:
          ConfigError: for an unknown system, or no seed.
        """
        for name in systems:
            check_name(name)
        if not seeds or not systems:
            raise ConfigError(
                "A comparison needs systems and seeds. "
                f"Received: {list(systems)} and {list(seeds)}."
            )
        for seed in seeds:
            log: PreparedLog | None = None
            config = Config.from_dict(self.config.to_dict() | {"seed": seed})
            for name in systems:
                path = self._result(name, seed)
                if measured.load(path) is not None:
                    _LOG.info("%s, seed %d: finished already.", name, seed)
                    continue
                if log is None:
                    log = self._log(config)
                self._run(name, config, log, path)
        return self.report()

    def _run(self, name: str, config: Config, log: PreparedLog, path: Path) -> None:
        _LOG.info("%s, seed %d ...", name, config.seed)
        system = make_system(name, config, self.show_progress)
        folder = RunFolder(
            self.path / "runs" / system.trained_as / f"seed{config.seed}"
        )
        with folder.locked():
            system.fit(log, folder.path)
        measured.save(path, measured.measure(system, log, config.evaluation))
        # Models hold themselves in circles; a table each would pile up.
        del system
        gc.collect()

    def _log(self, config: Config) -> PreparedLog:
        """Prepares the log of a seed; refuses another than what was trained on."""
        log = prepare(config)
        self._claimed(write=True)
        path = self.path / "runs" / f"log_seed{config.seed}.json"
        content = json.dumps(save_schema(log) | {"examples": fingerprint(log)})
        if not path.is_file():
            write_atomic(path, content)
        elif path.read_text(encoding="utf-8") != content:
            raise CheckpointError(
                "A comparison should continue on the log it began with. Received: "
                f"another one than in {str(self.path)!r}. Restore it, or choose "
                "another --output."
            )
        if self.on == "validation":
            log = replace(log, test=log.validation, test_histories=log.train_histories)
        return log

    def _result(self, name: str, seed: int) -> Path:
        return self.path / "results" / self.on / name / f"seed{seed}"

    def report(self) -> dict[str, Any]:
        """Writes the report of all results there are; returns its contents."""
        results = self._results()
        content = {
            "objectives": list(self.config.cascade.objectives),
            "on": self.on,
            "reference": REFERENCE,
            "systems": {
                name: measured.mean_cost([one.cost for one in by_seed.values()])
                | {"seeds": list(by_seed)}
                for name, by_seed in results.items()
            },
            "protocols": {
                protocol: {
                    objective: self._compare(results, protocol, objective)
                    for objective in self.config.cascade.objectives
                }
                for protocol in PROTOCOLS
            },
        }
        write_comparison(self.path, content)
        return content

    def _results(self) -> dict[str, dict[int, Measured]]:
        """Returns all results by system and seed, in the order of the registry."""
        found: dict[str, dict[int, Measured]] = {}
        root = self.path / "results" / self.on
        for path in sorted(root.glob("*/seed*.json")):
            one = measured.load(path.with_suffix(""))
            if one is not None:
                seed = int(path.stem.removeprefix("seed"))
                found.setdefault(path.parent.name, {})[seed] = one
        return {
            name: dict(sorted(found[name].items()))
            for name in (*SYSTEMS, *ABLATIONS)
            if name in found
        }

    def _compare(
        self,
        results: Mapping[str, Mapping[int, Measured]],
        protocol: str,
        objective: str,
    ) -> dict[str, Any]:
        reference = results.get(REFERENCE, {})
        settings, seed = self.config.evaluation, self.config.seed
        compared = {}
        for name, by_seed in results.items():
            values = {s: one.parts[protocol, objective] for s, one in by_seed.items()}
            pooled = measured.pool(list(values.values()))
            entry: dict[str, Any] = {
                "users": len(pooled.counts),
                "metrics": measured.summary(pooled, settings, seed),
            }
            common = [s for s in values if s in reference]
            if name != REFERENCE and common:
                theirs = [reference[s].parts[protocol, objective] for s in common]
                apart = measured.differences([values[s] for s in common], theirs)
                entry["difference"] = measured.summary(
                    measured.pool(apart), settings, seed
                )
                entry["difference_seeds"] = common
            compared[name] = entry
        return compared
