"""Exporting versioned SavedModels, atomically."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import ExportError, TfcsmfError
from tfcsmf.files import atomic_directory
from tfcsmf.retrieval.exported import DESCRIPTION, QUERIES, version_numbers
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.serving_model import ServingModel
from tfcsmf.serving.warmup import write_warmup


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
      path: the version folder; its name is the version.
      index: kind, parameters and measured recall of the index.
    """

    path: Path
    index: dict[str, Any]


def export_cascade(
    model: CSMF,
    log: PreparedLog,
    config: Config,
    scales: np.ndarray,
    base_path: str | os.PathLike[str],
    candidates: np.ndarray | None = None,
) -> Exported:
    """Builds the index of a trained model and exports both.

    Args:
      model: the trained model.
      log: the log it was trained on.
      config: `retrieval`, `data.history_length` and `seed` are used.
      scales: float [S], see `objective_scales`.
      base_path: folder of versions.
      candidates: vectors of the catalogue, float32 [C, d], where known already.

    Raises:
      ExportError: see `build_index` and `export`.
    """
    serving = build_serving_model(model, log, config, scales, candidates)
    return Exported(export(serving, base_path), serving.index.describe())


def build_serving_model(
    model: CSMF,
    log: PreparedLog,
    config: Config,
    scales: np.ndarray,
    candidates: np.ndarray | None = None,
) -> ServingModel:
    """Builds what `export` writes; see `export_cascade`."""
    encoder = Encoder(model, log, config.data.history_length)
    stages = len(log.objectives)
    if candidates is None:
        candidates = encoder.candidates(stages)
    scales = np.asarray(scales, np.float32)
    queries = _sample_queries(encoder, config) / scales[:, np.newaxis]
    index = build_index(candidates, queries, config.retrieval, config.seed)
    return ServingModel(
        model,
        log,
        index,
        scales,
        config.objective_weights(),
        config.data.history_length,
        config.retrieval.max_k,
        queries,
    )


def export(serving_model: ServingModel, base_path: str | os.PathLike[str]) -> Path:
    """Writes the next version of a model: `base_path/<version>/`.

    The version is one more than the largest there is. It is written under a hidden
    name and renamed, so a server never loads half of it; earlier versions are
    not touched, also if the export fails.

    Returns:
      The version folder.

    Raises:
      ExportError: if the folder cannot be written or the model cannot be saved.
      OSError: if the disk is full.
    """
    base = Path(base_path)
    while True:
        target = base / str(max(version_numbers(base), default=0) + 1)
        try:
            with atomic_directory(target) as folder:
                _save(serving_model, folder)
            return target
        except (OSError, TfcsmfError) as error:
            if not isinstance(error, ExportError) and target.exists():
                continue  # another export was faster: take the next number
            if isinstance(error, OSError) and error.errno not in (
                errno.ENOSPC,
                errno.EDQUOT,
            ):
                raise ExportError(
                    f"The export needs a folder that can be written. Received: "
                    f"{str(base)!r} ({error}). Choose another folder."
                ) from error
            raise


def _save(serving_model: ServingModel, folder: Path) -> None:
    signatures = serving_model.signatures()
    try:
        tf.saved_model.save(serving_model, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        if "No space left" in str(error):
            raise OSError(
                errno.ENOSPC, "No space left on device", str(folder)
            ) from error
        raise ExportError(
            f"The model should be writable as a SavedModel. Received: {error}"
        ) from error
    write_warmup(folder, signatures)
    description = folder / DESCRIPTION
    description.parent.mkdir(exist_ok=True)
    text = json.dumps(serving_model.describe(), indent=2, ensure_ascii=False)
    description.write_text(text + "\n", encoding="utf-8")
    queries = serving_model.calibration_queries()
    if queries is not None:
        np.save(folder / QUERIES, queries)


def _sample_queries(encoder: Encoder, config: Config) -> np.ndarray:
    """Vectors of random users with their whole training histories, [Q, S, d]."""
    log = encoder.log
    rng = np.random.default_rng([config.seed, 17])
    count = min(config.retrieval.calibration_queries, log.users.size)
    users = np.sort(rng.choice(log.users.size, count, replace=False)).astype(np.int32)
    ends = np.zeros((count, len(log.history_events)), np.int64)
    for column, event in enumerate(log.history_events):
        ends[:, column] = log.train_histories.lists[event].offsets[users + 1]
    return np.stack(
        [
            encoder.query_vectors(users, ends, log.train_histories, stage)
            for stage in range(len(log.objectives))
        ],
        axis=1,
    )
