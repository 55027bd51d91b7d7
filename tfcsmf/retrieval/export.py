"""Exporting versioned SavedModels, atomically."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF
from tfcsmf.config import Config
from tfcsmf.data.prepared import EntityTable, PreparedLog
from tfcsmf.errors import ExportError, TfcsmfError
from tfcsmf.files import atomic_directory
from tfcsmf.heterrec.encoding import SequenceEncoder
from tfcsmf.heterrec.model import SequenceModel
from tfcsmf.retrieval.exported import DESCRIPTION, QUERIES, version_numbers
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.served import serve_sequences
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

    def vectors_of(users: np.ndarray, ends: np.ndarray) -> np.ndarray:
        histories = log.train_histories
        passes = [
            encoder.query_vectors(users, ends, histories, stage)
            for stage in range(stages)
        ]
        return np.stack(passes, axis=1)

    queries = _sample_queries(log, config, vectors_of) / scales[:, np.newaxis]
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


def export_sequence(
    model: SequenceModel,
    log: PreparedLog,
    config: Config,
    base_path: str | os.PathLike[str],
    candidates: np.ndarray | None = None,
) -> Exported:
    """Builds the index of a trained sequence model and exports both.

    It is served as a cascade of one objective, whose scores need no scale. Items of a
    history are read up to `sequence.length`, and one more for the gap before them.

    Args:
      model: the trained model.
      log: the log it was trained on.
      config: `retrieval`, `sequence.length` and `seed` are used.
      base_path: folder of versions.
      candidates: vectors of the catalogue, float32 [C, d], where known already.

    Raises:
      ExportError: see `build_index` and `export`.
    """
    serving = build_sequence_serving_model(model, log, config, candidates)
    return Exported(export(serving, base_path), serving.index.describe())


def build_sequence_serving_model(
    model: SequenceModel,
    log: PreparedLog,
    config: Config,
    candidates: np.ndarray | None = None,
) -> ServingModel:
    """Builds what `export` writes; see `export_sequence`."""
    length = config.sequence.length
    encoder = SequenceEncoder(model, log, length)
    # Queries read the tokens that this leaves behind.
    own = encoder.candidates()
    candidates = own if candidates is None else candidates

    def vectors_of(users: np.ndarray, ends: np.ndarray) -> np.ndarray:
        return encoder.query_vectors(users, ends, log.train_histories)[:, np.newaxis]

    queries = _sample_queries(log, config, vectors_of)
    index = build_index(candidates, queries, config.retrieval, config.seed)
    # Who asks, and with what features, makes no difference to a sequence.
    nobody = EntityTable(log.users.ids[:0], 0, (), {})
    return ServingModel(
        serve_sequences(model, log, length),
        replace(log, users=nobody),
        index,
        np.ones(1, np.float32),
        [1.0],
        length + 1,
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


def _sample_queries(
    log: PreparedLog,
    config: Config,
    vectors_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Vectors of random users with their whole training histories, [Q, S, d]."""
    rng = np.random.default_rng([config.seed, 17])
    here = log.users_here
    count = min(config.retrieval.calibration_queries, len(here))
    users = here[np.sort(rng.choice(len(here), count, replace=False))]
    ends = np.zeros((count, len(log.history_events)), np.int64)
    for column, event in enumerate(log.history_events):
        ends[:, column] = log.train_histories.lists[event].offsets[users + 1]
    return vectors_of(users, ends)
