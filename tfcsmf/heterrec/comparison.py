"""Sequence encoders side by side: train, measure, compare by users. Resumable."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tfcsmf.baselines import measured
from tfcsmf.baselines.comparison_report import write_comparison
from tfcsmf.baselines.measured import Measured
from tfcsmf.baselines.system import Cost, System
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import ConfigError
from tfcsmf.evaluation.protocols import PROTOCOLS
from tfcsmf.evaluation.ranker import Ranker
from tfcsmf.heterrec.training import SequenceTrainer

_LOG = logging.getLogger(__name__)

Part = Literal["test", "validation"]
Results = dict[str, dict[int, Measured]]


class SequenceSystem(System):
    """A sequence encoder as a system that can be measured beside others.

    Args:
      config: `sequence` says which encoder.
      show_progress: draw progress bars on stderr.
    """

    name = trained_as = "sequence"
    trainer: SequenceTrainer
    stages: list[dict[str, Any]]

    def fit(self, log: PreparedLog, folder: str | Path) -> None:
        """See `System.fit`."""
        self.trainer = SequenceTrainer(self.config, log, self.show_progress, folder)
        self.trainer.resume()
        self.stages = self.trainer.train()

    def ranker(self, objective: str) -> Ranker:
        """See `System.ranker`; all objectives have the same."""
        return self.trainer.ranker()

    def cost(self) -> Cost:
        """See `System.cost`."""
        model = self.trainer.model
        return Cost(
            networks=1,
            parameters=sum(p.size for p in model.owned_parameters),
            dimension=model.dimension,
            index_queries=1,
            training_seconds=sum(stage["seconds"] for stage in self.stages),
            examples_seen=sum(stage["examples_seen"] for stage in self.stages),
        )


def compare_sequences(
    config: Config,
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    output: str | Path,
    on: Part = "test",
    show_progress: bool = True,
) -> dict[str, Any]:
    """Trains and measures what is missing; returns the report of all of it.

    In `output`, `<variant>/seed<n>/` has checkpoints and, per user, the values on
    `test` or `validation`; `report/` is as `write_comparison` leaves it. Intervals are
    of users with all their seeds, and paired with the first variant's.

    Args:
      config: of all variants; `evaluation.ks` says what is measured.
      variants: assignments (`sequence.dropout=0.5`) by name, of `sequence` alone. The
        first is what the others are compared with.
      seeds: distinct; variants with the same seed see the same batches.
      output: the folder. A variant that is there already is not trained again.
      on: the queries. Choose settings on `validation`, and look at `test` once.
      show_progress: draw progress bars on stderr.

    Raises:
      ConfigError: without a variant or a seed, for other assignments, or if validation
        was to measure what refits on it.
      CheckpointError: if a variant in `output` had another configuration.
    """
    if not variants or not seeds:
        raise ConfigError(
            "A comparison needs variants and seeds. "
            f"Received: {list(variants)} and {list(seeds)}."
        )
    for name, assignments in variants.items():
        foreign = [text for text in assignments if not text.startswith("sequence.")]
        if foreign:
            raise ConfigError(
                "A variant should differ in `sequence` alone, so that all see the same "
                f"log. Received: {foreign} of {name!r}. Give it for all of them, with "
                "--set."
            )
    results: Results = {name: {} for name in variants}
    for seed in seeds:
        log: PreparedLog | None = None
        for name, assignments in variants.items():
            tree = config.to_dict() | {"seed": seed}
            own = Config.from_dict(tree, assignments)
            if on == "validation" and own.sequence.training.refit:
                raise ConfigError(
                    "What is measured on validation should not be trained on it. "
                    f"Received: sequence.training.refit=true of {name!r}. Set it to "
                    "false, or measure on test."
                )
            folder = RunFolder(Path(output) / name / f"seed{seed}")
            path = folder.path / on
            with folder.locked():
                begun = bool(folder.run_section())
                if begun:
                    folder.check_same(own, None, "A comparison")
                found = measured.load(path)
                if found is None:
                    log = log or _prepared(own, on)
                    if not begun:  # nothing is left where the log is refused
                        folder.write_config(own, "running", None, False)
                    found = _measured(own, log, folder.path, show_progress)
                    measured.save(path, found)
                    folder.write_config(own, "finished", None, True)
            results[name][seed] = found
            _LOG.info("%s, seed %d: measured.", name, seed)
    content = _report(config, results, on)
    write_comparison(output, content)
    return content


def _prepared(config: Config, on: Part) -> PreparedLog:
    log = prepare(config)
    if on == "validation":
        log = replace(log, test=log.validation, test_histories=log.train_histories)
    return log


def _measured(
    config: Config, log: PreparedLog, folder: Path, show_progress: bool
) -> Measured:
    system = SequenceSystem(config, show_progress)
    system.fit(log, folder)
    values = measured.measure(system, log, config.evaluation)
    # Models hold themselves in circles; a table each would pile up.
    del system
    gc.collect()
    return values


def _report(config: Config, results: Results, on: Part) -> dict[str, Any]:
    objectives = list(config.cascade.objectives)
    return {
        "objectives": objectives,
        "on": on,
        "reference": next(iter(results)),
        "systems": {
            name: measured.mean_cost([one.cost for one in by_seed.values()])
            | {"seeds": list(by_seed)}
            for name, by_seed in results.items()
        },
        "protocols": {
            protocol: {
                objective: _compared(config, results, (protocol, objective))
                for objective in objectives
            }
            for protocol in PROTOCOLS
        },
    }


def _compared(config: Config, results: Results, part: measured.Part) -> dict[str, Any]:
    settings = config.evaluation
    values = {
        name: [one.parts[part] for one in by_seed.values()]
        for name, by_seed in results.items()
    }
    reference, *_ = values.values()
    compared = {}
    for name, own in values.items():
        pooled = measured.pool(own)
        compared[name] = {
            "users": len(pooled.counts),
            "metrics": measured.summary(pooled, settings, 0),
        }
        if own is not reference:
            apart = measured.pool(measured.differences(own, reference))
            compared[name]["difference"] = measured.summary(apart, settings, 0)
            compared[name]["difference_seeds"] = list(results[name])
    return compared
