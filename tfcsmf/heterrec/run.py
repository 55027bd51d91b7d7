"""The job of `pipelines/run_sequence.py`: event log in, evaluated encoder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfcsmf.baselines import build_baselines
from tfcsmf.cascade.checkpoints import CheckpointStore
from tfcsmf.cascade.run import RunResult
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.config import Config
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.schema import save_schema
from tfcsmf.errors import CheckpointError
from tfcsmf.evaluation.protocols import evaluate_all
from tfcsmf.evaluation.report import write_report
from tfcsmf.heterrec.training import SequenceTrainer


def run_sequence(
    config: Config, output: str | Path, show_progress: bool = True
) -> RunResult:
    """Trains and evaluates the sequence encoder of a configuration.

    Args:
      config: the resolved configuration; `sequence` says which encoder.
      output: folder for everything the run leaves: `config.yaml`, `checkpoints/` with
        the best parameters, and `report/`.
      show_progress: draw progress bars on stderr.

    Raises:
      TfcsmfError: for every mistake a user can mend.
    """
    folder = RunFolder(output)
    with folder.locked():
        if folder.run_section():
            raise CheckpointError(
                f"{str(folder.path)!r} holds a run already. Choose another --output, "
                "or delete the folder."
            )
        log = prepare(config)
        trainer = SequenceTrainer(config, log, show_progress)
        folder.write_config(config, "running", None, False)
        stage = trainer.train()
        _save(folder, trainer, log)
        metrics = _metrics(config, log, trainer, stage)
        curves = {stage["name"]: {"phases": trainer.progress.stage_curves()}}
        report = write_report(
            folder.path,
            metrics,
            history=curves,
            settings=config.to_dict(),
            title=f"Sequence encoder {config.sequence.encoder}: {stage['name']}",
        )
        folder.write_config(config, "finished", None, True)
    return RunResult(metrics, report, None)


def _save(folder: RunFolder, trainer: SequenceTrainer, log: PreparedLog) -> None:
    """Writes the best parameters and what later data must be encoded with."""
    store = CheckpointStore(folder.checkpoints)
    store.save_schema(save_schema(log))
    store.save(
        {"progress": trainer.progress.to_dict()},
        {
            f"model/{parameter.name}": parameter.variable.numpy()
            for parameter in trainer.model.owned_parameters
        },
    )


def _metrics(
    config: Config, log: PreparedLog, trainer: SequenceTrainer, stage: dict[str, Any]
) -> dict[str, Any]:
    parameters = trainer.model.owned_parameters
    settings = config.evaluation
    return {
        "objectives": list(log.objectives),
        "encoder": config.sequence.encoder,
        "protocols": evaluate_all(trainer.ranker(), log.test, settings, config.seed),
        "stages": [stage],
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
