"""The main job: event log in, trained, evaluated and exported retriever out."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.cascade import assessment
from tfcsmf.cascade.checkpoints import Checkpoint, CheckpointStore
from tfcsmf.cascade.model import CSMF, build_model
from tfcsmf.cascade.parameter_servers import ParameterServers, check_shards
from tfcsmf.cascade.run_data import RunData
from tfcsmf.cascade.run_data import fingerprint as fingerprint
from tfcsmf.cascade.run_folder import RunFolder
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.training_state import load_model_arrays
from tfcsmf.cascade.workers import Workers
from tfcsmf.config import Config, read_yaml
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import CapacityError, CheckpointError, ConfigError
from tfcsmf.evaluation.report import write_report
from tfcsmf.negatives.diagnostics import describe_clusters
from tfcsmf.retrieval.calibration import objective_scales
from tfcsmf.retrieval.export import export_cascade
from tfcsmf.towers import FREE

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind.

    Attributes:
      metrics: contents of report/metrics.json.
      report: report/index.html.
      serving: the exported version folder, `None` if nothing was exported now.
    """

    metrics: dict[str, Any]
    report: Path
    serving: Path | None


def run_cascade(
    config: Config,
    output: str | Path,
    resume: bool = False,
    extend: str | Path | None = None,
    show_progress: bool = True,
    workers: Workers | None = None,
    servers: ParameterServers | None = None,
) -> RunResult:
    """Runs the whole cascade; see `pipelines/run_cascade.py`.

    Args:
      config: the resolved configuration.
      output: folder for everything the run leaves.
      resume: continue an unfinished run in `output` (start it if there is none).
      extend: folder of a finished run whose model gets the objectives that
        `config` has beyond those of that run.
      show_progress: draw progress bars on stderr.
      workers: that train it together; this is their chief, see `assist_cascade`.
      servers: that hold the shards of tables; this is their chief.

    Raises:
      TfcsmfError: for every mistake a user can mend.
    """
    if servers is not None:
        check_shards(config)
        with servers.watched():
            devices = servers.devices
            return _run(config, output, resume, extend, show_progress, None, devices)
    if workers is not None:
        with workers.meeting():
            result = _run(config, output, resume, extend, show_progress, workers)
            workers.finish()
            return result
    return _run(config, output, resume, extend, show_progress, None)


def _run(
    config: Config,
    output: str | Path,
    resume: bool,
    extend: str | Path | None,
    show_progress: bool,
    workers: Workers | None,
    devices: Sequence[str] = (),
) -> RunResult:
    folder = RunFolder(output)
    base = RunFolder(extend) if extend else None
    if base is not None:
        _check_base(base, folder)
    with folder.locked():
        section = folder.run_section()
        continued = bool(section) and resume
        if continued:
            folder.check_same(config, base.path if base else None)
            if section["status"] == "finished":
                if workers is not None:
                    workers.dismiss()
                _LOG.info("The run in %s is finished already.", folder.path)
                metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
                return RunResult(metrics, folder.metrics.with_name("index.html"), None)
        elif section.get("status", "finished") != "finished":
            raise CheckpointError(
                f"{str(folder.path)!r} holds an unfinished run. Continue it with "
                "--resume, choose another --output, or delete the folder."
            )
        store = CheckpointStore(folder.checkpoints)
        source = CheckpointStore(base.checkpoints) if base else None
        # Whatever can be refused is refused before anything is written.
        start = _base_checkpoint(source, config) if source else None
        data = RunData.read(config, source.load_schema() if source else None)
        model = build_model(config, data.log, devices)
        if start is not None:
            load_model_arrays(model, start.arrays)
        schema = data.schema()
        if continued:
            check_same_log(store, schema)
        if workers is not None:
            check_rows(config, data.log, workers)
            workers.begin(shared_fingerprint(config, schema))
        if not continued:
            store.clear()
        folder.write_config(config, "running", base.path if base else None, continued)
        store.save_schema(schema)
        return _train_and_publish(
            config, folder, data, model, resume, source, show_progress, workers
        )


def assist_cascade(
    config: Config, workers: Workers, extend: str | Path | None = None
) -> None:
    """Trains along with the chief, which runs `run_cascade`; writes nothing to keep.

    Args:
      config: the chief's; its log has to be readable here as well.
      workers: this one and the chief.
      extend: the chief's, readable here.

    Raises:
      TfcsmfError: for every mistake a user can mend.
    """
    with workers.meeting(), tempfile.TemporaryDirectory() as folder:
        base = CheckpointStore(RunFolder(extend).checkpoints) if extend else None
        start = _base_checkpoint(base, config) if base else None
        data = RunData.read(config, base.load_schema() if base else None)
        model = build_model(config, data.log)
        if start is not None:
            load_model_arrays(model, start.arrays)
        check_rows(config, data.log, workers)
        if not workers.begin(shared_fingerprint(config, data.schema())):
            _LOG.info("The chief has nothing to train.")
        else:
            # The chief shows the progress of all.
            data.trainer(config, model, folder, False, workers).train()
        workers.finish()


def shared_fingerprint(config: Config, schema: dict[str, Any]) -> dict[str, Any]:
    """Returns what has to be the same on all workers; paths may differ."""
    tree = config.to_dict()
    for name in ("events", "items", "users", "prepared"):
        del tree["data"][name]
    return {"config": tree, "schema": schema}


def check_rows(config: Config, log: PreparedLog, workers: Workers) -> None:
    """Refuses batches with fewer rows than workers.

    Raises:
      ConfigError: naming the objective.
    """
    for name in log.objectives:
        users = len(np.unique(log.train[name].pairs.users))
        rows = min(config.stage(name).batch_size, users)
        if rows < workers.count:
            raise ConfigError(
                "Every worker should have a row of each batch: batch_size and the "
                f"number of users at least {workers.count}. Received: {rows} for "
                f"{name!r}. Start fewer workers."
            )


def _check_base(base: RunFolder, folder: RunFolder) -> None:
    if base.path.resolve() == folder.path.resolve():
        raise ConfigError(
            "--output should differ from the run that --extend names, which is kept. "
            f"Received: {str(base.path)!r} for both."
        )
    _require_finished(base)


def _require_finished(base: RunFolder) -> None:
    status = base.run_section().get("status", "no run")
    if status != "finished":
        raise CheckpointError(
            f"--extend should name the folder of a finished run. Received: "
            f"{str(base.path)!r} ({status}). Finish it with --resume first."
        )


def check_same_log(store: CheckpointStore, schema: dict[str, Any]) -> None:
    """Refuses to resume on other data: rows would belong to other ids."""
    if store.latest() is None:
        return
    before = store.load_schema()
    changed = [key for key in schema if before.get(key) != schema[key]]
    if changed:
        raise CheckpointError(
            "--resume should continue on the log the run began with. Received: a log "
            f"that differs in {', '.join(changed)}. Restore it, or start another run."
        )


def _train_and_publish(
    config: Config,
    folder: RunFolder,
    data: RunData,
    model: CSMF,
    resume: bool,
    base: CheckpointStore | None,
    show_progress: bool,
    workers: Workers | None,
) -> RunResult:
    log = data.log
    trainer = data.trainer(config, model, folder.path, show_progress, workers)
    resumed = trainer.resume() if resume else False
    if resumed:
        _LOG.info(
            "Resuming at stage %d, step %d.",
            trainer.progress.stage,
            trainer.progress.step,
        )
    elif base is not None:
        trainer.inherit(base)
    progress = trainer.train()

    stages = len(log.objectives)
    candidates = trainer.encoder.candidates(stages)
    scales = _scales(trainer, log, candidates, config)
    results = assessment.assess(trainer.encoder, candidates, config, data.test_parts())
    metrics: dict[str, Any] = {
        "objectives": list(log.objectives),
        "protocols": results["protocols"],
        "stages": progress.finished,
        "model": assessment.describe_model(model, stages),
        "frozen_max_abs_change": trainer.frozen.max_abs_change(),
        "baselines": results["baselines"],
        "data": log.summary,
        "scales": dict(zip(log.objectives, map(float, scales), strict=True)),
    }
    clusters = trainer.clusters
    if clusters is not None:
        metrics["clusters"] = describe_clusters(clusters, log.items)
    exported = export_cascade(
        model, log, config, scales, folder.serving, candidates=candidates
    )
    metrics["index"] = exported.index
    metrics["serving_version"] = int(exported.path.name)
    report = write_report(
        folder.path,
        metrics,
        history=progress.curves,
        capacity=assessment.capacity_shares(model, log),
        tradeoff=assessment.tradeoff(trainer.encoder, candidates, scales, config),
        clusters=None if clusters is None else (clusters.places, clusters.first),
        settings=config.to_dict(),
        title="CSMF cascade: " + " > ".join(log.objectives),
    )
    folder.write_config(
        config, "finished", Path(base.directory).parent if base else None, True
    )
    return RunResult(metrics, report, exported.path)


def _scales(
    trainer: CascadeTrainer, log: PreparedLog, candidates: np.ndarray, config: Config
) -> np.ndarray:
    return objective_scales(
        lambda part, stage: trainer.encoder.queries(part, log.train_histories, stage),
        candidates,
        [log.validation[name] for name in log.objectives],
        config.seed,
    )


def base_tree(base: str | Path, objectives: list[str] | None) -> dict[str, Any]:
    """Returns the configuration tree of a run, to be extended by objectives.

    Args:
      base: folder of the finished run.
      objectives: its objectives, followed by the new ones.

    Raises:
      CheckpointError: if there is no run.
      ConfigError: if they do not begin with the run's own, or append nothing.
    """
    _require_finished(RunFolder(base))
    tree = read_yaml(str(Path(base) / "config.yaml"))
    _check_appended(list(tree["cascade"]["objectives"]), objectives)
    # The folder that the base run was trained from has not the objectives to come.
    tree.get("data", {}).pop("prepared", None)
    # The capacity kept back is what the new objectives are trained in.
    tree["cascade"]["reserve"] = False
    return tree


def _base_checkpoint(base: CheckpointStore, config: Config) -> Checkpoint:
    """Returns the end of the run to extend, if it can take the new objectives.

    Raises:
      CheckpointError: if there is no such state, or it is of other objectives.
      ConfigError: if `config` appends none.
      CapacityError: if it has too few free output dimensions.
    """
    checkpoint = base.latest()
    if checkpoint is None:
        raise CheckpointError(
            f"The run to extend should have checkpoints in {str(base.directory)!r}. "
            "Received: none. Name the folder of a finished run."
        )
    finished = [stage["name"] for stage in checkpoint.state["finished"]]
    before = base.load_schema()["objectives"]
    if finished != before:
        raise CheckpointError(
            f"The run to extend should be finished. Received: stages {finished} of "
            f"{before}. Finish it with --resume first."
        )
    _check_appended(before, list(config.cascade.objectives))
    free = int(np.sum(checkpoint.arrays["block_owner"] == FREE))
    wanted = len(config.cascade.objectives) - len(before)
    wanted += int(config.cascade.reserve)
    if free < wanted:
        raise CapacityError(
            f"Appending objectives (and keeping a reserve) should leave each a free "
            f"output dimension: {wanted} here. Received: {free} in "
            f"{str(base.directory.parent)!r}. Train the base run with "
            "--set cascade.reserve=true."
        )
    return checkpoint


def _check_appended(before: list[str], objectives: list[str] | None) -> None:
    if not objectives or objectives[: len(before)] != before or objectives == before:
        raise ConfigError(
            "--objectives should list the objectives of the extended run and then the "
            f"new ones. Received: {objectives} for a run with {before}."
        )
