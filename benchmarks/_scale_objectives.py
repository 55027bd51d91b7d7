"""The part `objectives` of `scale.py`: cascades of more and more levels."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import fused_query
import numpy as np
import tensorflow as tf
from scale_figures import CASCADE, MEASURED_K, QUERY, STAGE

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.config import Config
from tfcsmf.data.inputs import history_name
from tfcsmf.data.prepare import prepare
from tfcsmf.data.prepared import EntityTable
from tfcsmf.evaluation.protocols import evaluate
from tfcsmf.evaluation.ranker import VectorRanker
from tfcsmf.retrieval.calibration import objective_scales
from tfcsmf.retrieval.export import export
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.serving_model import ServingModel


class Level:
    """A cascade of some of the simulator's levels, trained and exported."""

    def __init__(self, options: argparse.Namespace, count: int) -> None:
        self.names = [f"level_{number + 1}" for number in range(count)]
        self.config = Config.from_dict(
            {
                "simulator": {
                    "users": options.level_users,
                    "items": options.level_items,
                    "exposures_per_user": options.exposures,
                    # The second rate holds for all later levels too.
                    "click_rate": 0.6,
                    "conversion_rate": 0.7,
                },
                "data": {"history_events": self.names[:1]},
                "cascade": {
                    "objectives": self.names,
                    "stage": {"epochs": options.epochs},
                },
                "evaluation": {"ks": [MEASURED_K], "validation_k": MEASURED_K},
                "retrieval": {"index": "exact", "k": options.k},
            }
        )
        self.log = prepare(self.config)
        self.model = build_model(self.config, self.log)
        self.loaded: list[Any] = []

    def train(self, folder: Path) -> None:
        trainer = CascadeTrainer(
            self.config, self.log, self.model, folder, show_progress=False
        )
        began = time.perf_counter()
        self.stages = trainer.train().finished
        self.seconds = time.perf_counter() - began
        self.change = trainer.frozen.max_abs_change()
        self.encoder = trainer.encoder
        self.candidates = trainer.encoder.candidates(len(self.names))

    def test(self, objective: str) -> dict[str, Any]:
        log, stage = self.log, self.names.index(objective)
        ranker = VectorRanker(
            lambda _, part: self.encoder.queries(part, log.test_histories, stage),
            self.candidates,
        )
        held_out = log.test[objective]
        settings, seed = self.config.evaluation, self.config.seed
        metrics = evaluate(ranker, held_out, objective, "unseen", settings, seed)
        low, high = metrics[f"recall@{MEASURED_K}_ci95"] or (None, None)
        return {
            "test_users": metrics["users"],
            "test_recall": metrics[f"recall@{MEASURED_K}"],
            "test_low": low,
            "test_high": high,
        }

    def catalogue(self, size: int) -> tuple[EntityTable, np.ndarray]:
        """The items and their vectors, filled up to `size` by copies a little apart."""
        items, rng = self.log.items, np.random.default_rng(0)
        like = rng.integers(items.size, size=max(0, size - items.size))
        ids = [items.ids, [f"like-{n}" for n in range(len(like))]]
        features = {
            name: np.concatenate([values, values[like]])
            for name, values in items.features.items()
        }
        vectors = self.candidates[like]
        noise = rng.standard_normal(vectors.shape, np.float32)
        vectors = vectors + 0.1 * self.candidates.std() * noise
        return (
            replace(items, ids=np.concatenate(ids), features=features),
            np.concatenate([self.candidates, vectors]),
        )

    def signature(self, folder: Path, size: int) -> fused_query.Signature:
        """Exports a catalogue; returns the weighted signature as it is loaded again."""
        items, vectors = self.catalogue(size)
        log, encoder = replace(self.log, items=items), self.encoder
        scales = objective_scales(
            lambda part, stage: encoder.queries(part, log.train_histories, stage),
            self.candidates,
            [log.validation[name] for name in self.names],
            self.config.seed,
        )
        retrieval = self.config.retrieval
        none = np.zeros((0, len(self.names), self.model.dimension), np.float32)
        serving = ServingModel(
            self.model,
            log,
            build_index(vectors, none, retrieval),
            scales,
            self.config.objective_weights(),
            self.config.data.history_length,
            self.config.retrieval.max_k,
        )
        loaded = tf.saved_model.load(str(export(serving, folder)))
        self.loaded.append(loaded)  # or its variables would be gone
        signature: fused_query.Signature = loaded.signatures["retrieve_weighted"]
        return signature

    def request(self, batch: int, seed: int) -> fused_query.Request:
        """Raw inputs of known users with histories of 20 items, and weights."""
        rng = np.random.default_rng(seed)
        users = rng.choice(self.log.users.ids, size=batch)
        items = rng.choice(self.log.items.ids, size=(batch, 20))
        weights = rng.dirichlet(np.ones(len(self.names)), batch)
        weighted = self.loaded[0].signatures["retrieve_weighted"]
        specs = weighted.structured_input_signature
        given = {
            "user_id": tf.constant(users.astype(str)),
            history_name(self.names[0]): tf.constant(items.astype(str)),
            "objective_weights": tf.constant(weights, tf.float32),
            "exclude_item_ids": tf.constant([[""]] * batch),
        }
        # Features are left open: what is missing is legal.
        return {
            name: given[name] if name in given else missing(spec, batch)
            for name, spec in specs[1].items()
        }


def missing(spec: tf.TensorSpec, batch: int) -> tf.Tensor:
    shape = [batch, *(size or 1 for size in spec.shape[1:])]
    return tf.fill(shape, "" if spec.dtype == tf.string else np.float32(np.nan))


def by_objectives(report: harness.Report, options: argparse.Namespace) -> None:
    trained: dict[str, Level] = {}
    signatures: dict[tuple[int, str], fused_query.Signature] = {}
    for count in options.objectives:
        level = trained[str(count)] = Level(options, count)
        with tempfile.TemporaryDirectory() as folder:
            level.train(Path(folder))
            for size in options.served_items:
                path = Path(folder) / f"export{size}"
                signatures[size, str(count)] = level.signature(path, size)
        for stage in level.stages:
            frozen = stage["best_validation"][f"recall@{MEASURED_K}_frozen"]
            report.add(
                STAGE,
                {"objectives": count, "objective": stage["name"]},
                "s",
                [stage["seconds"]],
                examples=stage["examples"],
                examples_per_second=stage["examples_per_second"],
                validation_recall=frozen,
                **level.test(stage["name"]),
            )
        if level.change:
            raise AssertionError(f"Frozen scores moved by {level.change}.")
        report.add(
            CASCADE,
            {"objectives": count},
            "s",
            [level.seconds],
            dimension=level.model.dimension,
            parameters=level.model.num_parameters,
            frozen_max_abs_change=level.change,
        )
    first = str(options.objectives[0])
    for size, batch in itertools.product(options.served_items, options.query_batch):
        calls = {
            name: (
                signatures[size, name],
                [level.request(batch, seed) for seed in range(20)],
            )
            for name, level in trained.items()
        }
        times = fused_query.latencies(calls, options.requests)
        for name, values in times.items():
            report.add(
                QUERY,
                {"objectives": int(name), "items": size, "batch": batch},
                "ms",
                values.tolist(),
                p99=float(np.percentile(values, 99)),
                times_first=float(np.median(values) / np.median(times[first])),
            )
