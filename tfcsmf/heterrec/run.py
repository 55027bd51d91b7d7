"""The job of `pipelines/run_sequence.py`: event log in, exported encoder out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tfcsmf.baselines import build_baselines
from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.cascade.run import RunResult, check_same_log, fingerprint
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.schema import save_schema
from tfcsmf.errors import CheckpointError
from tfcsmf.evaluation.protocols import evaluate_all
from tfcsmf.evaluation.report import write_report
from tfcsmf.heterrec.training import SequenceTrainer
from tfcsmf.retrieval.export import export_sequence

_LOG = logging.getLogger(__name__)


def run_sequence(
    config: Config,
    output: str | Path,
    resume: bool = False,
    show_progress: bool = True,
) -> RunResult:
    """Trains, evaluates and exports the sequence encoder of a configuration.

    Args:
      config: the resolved configuration; `sequence` says which encoder.
      output: folder for everything the run leaves: `config.yaml`, `checkpoints/`, the
        last of which has the best parameters, `report/` and `serving/`.
      resume: continue an unfinished run in `output` (start it if there is none).
      show_progress: draw progress bars on stderr.

    Raises:
      TfcsmfError: for every mistake a user can mend.
    """
    folder = RunFolder(output)
    with folder.locked():
        section = folder.run_section()
        if section and not resume:
            raise CheckpointError(
                f"{str(folder.path)!r} holds a run already. Continue it with --resume "
                "if it is unfinished, choose another --output, or delete the folder."
            )
        if section:
            folder.check_same(config, None)
        if section and section["status"] == "finished":
            _LOG.info("The run in %s is finished already.", folder.path)
            metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
            return RunResult(metrics, folder.metrics.with_name("index.html"), None)
        log = prepare(config)
        trainer = SequenceTrainer(config, log, show_progress, folder.path)
        store = CheckpointStore(folder.checkpoints)
        schema = save_schema(log) | {"examples": fingerprint(log)}
        if section:
            check_same_log(store, schema)
        folder.write_config(config, "running", None, bool(section))
        store.save_schema(schema)
        if section and trainer.resume():
            again = " of refitting" if trainer.refitting else ""
            _LOG.info("Resuming after %d epochs%s.", trainer.progress.epochs, again)
        return _train_and_publish(config, folder, log, trainer)


def _train_and_publish(
    config: Config, folder: RunFolder, log: PreparedLog, trainer: SequenceTrainer
) -> RunResult:
    stages = trainer.train()
    candidates = trainer.encoder.candidates()
    metrics = _metrics(config, log, trainer, stages)
    exported = export_sequence(trainer.model, log, config, folder.serving, candidates)
    metrics["index"] = exported.index
    metrics["serving_version"] = int(exported.path.name)
    report = write_report(
        folder.path,
        metrics,
        history=trainer.progress.curves,
        settings=config.to_dict(),
        title=f"Sequence encoder {config.sequence.encoder}: {stages[0]['name']}",
    )
    folder.write_config(config, "finished", None, True)
    return RunResult(metrics, report, exported.path)


def _metrics(
    config: Config,
    log: PreparedLog,
    trainer: SequenceTrainer,
    stages: list[dict[str, Any]],
) -> dict[str, Any]:
    parameters = trainer.model.owned_parameters
    settings = config.evaluation
    return {
        "objectives": list(log.objectives),
        "encoder": config.sequence.encoder,
        "protocols": evaluate_all(trainer.ranker(), log.test, settings, config.seed),
        "stages": stages,
        "model": {
            "parameters": sum(p.size for p in parameters),
            "dense_parameters": sum(p.size for p in parameters if p.role != "table"),
            "dimension": trainer.model.dimension,
        },
        "baselines": {
            name: evaluate_all(reference, log.test, settings, config.seed)
            for name, reference in build_baselines(log, settings).items()
        },
        "data": log.summary,
    }
