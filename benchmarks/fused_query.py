"""One fused query of an exported model against a query per objective and a merge.

    python benchmarks/fused_query.py [--items 1000000] [--index exact scann] [--quick]

`fused`: the `retrieve_weighted` signature: one vector, one index. `per objective`: what
a user without it would do: a request per objective, which encodes the query for that
objective alone and asks an index of the same size of its own for the k best; then all
that were found scored again with the weights, exactly, and the best k kept. Both are
SavedModels that are loaded again, in one process, and take the same raw requests.
Requests alternate between them; one client. Recall is against the true k best by
weighted score.

The vectors are those of an untrained model whose users and items come in groups, which
is kind to approximate indexes: their speed depends on the data. Its weights are owned
by all stages, as after training, so all passes of a tower differ.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF, build_model
from tfcsmf.config import Config
from tfcsmf.data.inputs import history_name
from tfcsmf.data.prepared import Csr, EntityTable, Histories, PreparedLog
from tfcsmf.evaluation.topk import Catalogue
from tfcsmf.retrieval.exact_index import Index
from tfcsmf.retrieval.export import export
from tfcsmf.retrieval.folding import FoldedTower, fold_history_features
from tfcsmf.retrieval.fusion import fuse
from tfcsmf.retrieval.indexes import build_index
from tfcsmf.retrieval.serving_model import ServingModel

SIZES = {
    "items": 200_000,
    "users": 10_000,
    "k": 100,
    "index": ["exact", "scann"],
    "batch": [1, 32],
    "requests": 100,
    "target_recall": 0.95,
}
QUICK = {"items": 3000, "users": 200, "k": 10, "requests": 5, "batch": [1, 4]}
OBJECTIVES = ("exposure", "click", "conversion")
OWNED = (0.6, 0.25, 0.15)  # share of the weights by stage
FUSED, PEER, DEFAULT = "fused", "per objective, merged", "fused, default weights"

Request = dict[str, tf.Tensor]
Signature = Callable[..., dict[str, tf.Tensor]]


class MergedModel(tf.Module):
    """The alternative: an index per objective, and a merge.

    Args:
      serving: its inputs and scales are shared.
      towers: folded, with one pass each, one per objective.
      indexes: one per objective.
    """

    def __init__(
        self,
        serving: ServingModel,
        towers: Sequence[FoldedTower],
        indexes: Sequence[Index],
    ) -> None:
        super().__init__()
        self.serving = serving
        self.towers = list(towers)
        self.indexes = list(indexes)

    def search(self, raw: Request, objective: int) -> dict[str, tf.Tensor]:
        """The k best of one objective; passes of the others are not computed."""
        serving = self.serving
        query = self.towers[objective](serving.query_inputs(raw))[0]
        _, positions = self.indexes[objective].search(query, serving.index.k)
        return {"positions": positions, "query": query}

    def merge(
        self, positions: tf.Tensor, queries: tf.Tensor, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Scores what was found, [B, S * k], again; the best k of it."""
        k = self.serving.index.k
        positions = tf.sort(positions, axis=1)
        # Twice in the union, or not found by an approximate index.
        repeated = tf.equal(positions[:, 1:], positions[:, :-1])
        dropped = tf.pad(repeated, [[0, 0], [1, 0]]) | (positions < 0)
        vectors = self.indexes[0].take(positions)
        scaled = tf.transpose(queries / self.serving.scales[:, np.newaxis], [0, 2, 1])
        by_objective = tf.matmul(vectors, scaled)  # [B, S * k, S]
        scores = tf.reduce_sum(by_objective * weights[:, tf.newaxis], axis=2)
        scores, best = tf.math.top_k(tf.where(dropped, -np.inf, scores), k)
        return {
            "item_ids": self.serving.item_table.names(
                tf.gather(positions, best, batch_dims=1)
            ),
            "scores": scores,
            "objective_scores": tf.gather(by_objective, best, batch_dims=1),
        }

    def signatures(self) -> dict[str, Any]:
        specs = {
            name: tf.TensorSpec(spec.shape, spec.dtype, name=name)
            for name, spec in self.serving.query_inputs.specs().items()
        }

        def search(objective: int) -> Any:
            @tf.function(autograph=False)
            def call(**raw: tf.Tensor) -> dict[str, tf.Tensor]:
                return self.search(raw, objective)

            return call.get_concrete_function(**specs)

        count, width = len(OBJECTIVES), self.serving.index.vectors().shape[1]
        merge = tf.function(self.merge, autograph=False).get_concrete_function(
            tf.TensorSpec([None, None], tf.int32, "positions"),
            tf.TensorSpec([None, count, width], tf.float32, "queries"),
            tf.TensorSpec([None, count], tf.float32, "weights"),
        )
        return {name: search(o) for o, name in enumerate(OBJECTIVES)} | {"merge": merge}


def merged_request(signatures: Mapping[str, Signature]) -> Signature:
    """A request per objective, one after the other, and the merge of their answers."""

    def call(**arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = arguments.pop("objective_weights")
        answers = [signatures[name](**arguments) for name in OBJECTIVES]
        return signatures["merge"](
            positions=tf.concat([answer["positions"] for answer in answers], axis=1),
            queries=tf.stack([answer["query"] for answer in answers], axis=1),
            weights=weights,
        )

    return call


def empty_log(users: int, items: int) -> PreparedLog:
    """A log without events: what an export needs to know of users and items."""

    def table(prefix: str, size: int) -> EntityTable:
        ids = np.array([f"{prefix}{number}" for number in range(size)], object)
        return EntityTable(ids, size, (), {})

    none = Csr(np.zeros(users + 1, np.int64), np.zeros(0, np.int32))
    histories = Histories({name: none for name in OBJECTIVES})
    return PreparedLog(
        OBJECTIVES,
        OBJECTIVES,
        table("u", users),
        table("i", items),
        train={},
        train_histories=histories,
        validation={},
        test={},
        test_histories=histories,
        known={},
        summary={},
    )


def grouped_model(config: Config, log: PreparedLog) -> CSMF:
    """An untrained model of three stages; ids have the vectors of their group."""
    model = build_model(config, log)
    rng = np.random.default_rng(0)
    for parameter in model.owned_parameters:
        # Every stage owns a part of it, and the output dimensions are divided.
        owners = rng.choice(3, parameter.owner.shape, p=OWNED)
        owners = owners * (parameter.role != "bias")
        parameter.owner.assign(owners.astype(np.int8))
        if parameter.role == "table":
            rows, width = parameter.variable.shape
            groups = rng.standard_normal((max(2, rows // 1000), width), np.float32)
            values = 0.25 * rng.standard_normal((rows, width), np.float32)
            values += groups[rng.integers(len(groups), size=rows)]
            parameter.variable.assign(values)
    model.block_owner.assign(np.sort(np.arange(model.dimension) % 3).astype(np.int8))
    return model


class Setup:
    """The catalogue and what is asked of it; indexes come later."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.config = Config.from_dict(
            {
                "retrieval": {
                    "k": options.k,
                    "target_recall": options.target_recall,
                    "calibration_queries": 200,
                }
            }
        )
        self.log = empty_log(options.users, options.items)
        self.model = grouped_model(self.config, self.log)
        length = self.config.data.history_length
        encoder = Encoder(self.model, self.log, length)
        self.candidates = encoder.candidates(len(OBJECTIVES))
        users = np.arange(min(options.users, 200), dtype=np.int32)
        ends = np.zeros((len(users), len(OBJECTIVES)), np.int64)
        self.queries = np.stack(
            [
                encoder.query_vectors(users, ends, self.log.train_histories, stage)
                for stage in range(len(OBJECTIVES))
            ],
            axis=1,
        )
        # Spread within queries, as in `objective_scales`.
        sample = self.candidates[:: max(1, len(self.candidates) // 5000)]
        spread = np.einsum("qsd,cd->qsc", self.queries, sample).std(axis=2)
        self.scales = np.sqrt((spread**2).mean(axis=0)).astype(np.float32)
        self.catalogue = Catalogue(self.candidates)

    def index(self, kind: str, queries: np.ndarray) -> Index:
        tree = self.config.retrieval.model_dump() | {"index": kind}
        return build_index(
            self.candidates, queries, type(self.config.retrieval)(**tree)
        )

    def one_pass(self, objective: int) -> FoldedTower:
        """The query tower of one objective, as its own model would have it."""
        seen = self.model.block_owner.numpy() <= objective
        candidate = FoldedTower(
            self.model.candidate_tower, seen[np.newaxis], passes=[objective]
        )
        tower = self.model.query_tower
        features = fold_history_features(tower, candidate)
        return FoldedTower(
            tower, seen[np.newaxis], candidate.id_table, [objective], features
        )

    def models(
        self, kind: str, folder: Path
    ) -> tuple[dict[str, Signature], Any, float]:
        """Exports both; returns the signatures, the fused model and build seconds."""
        began = time.perf_counter()
        index = self.index(kind, self.queries / self.scales[:, np.newaxis])
        seconds = time.perf_counter() - began
        serving = ServingModel(
            self.model,
            self.log,
            index,
            self.scales,
            [1.0] * len(OBJECTIVES),
            self.config.data.history_length,
            self.config.retrieval.max_k,
        )
        merged = MergedModel(
            serving,
            [self.one_pass(objective) for objective in range(len(OBJECTIVES))],
            [
                self.index(kind, self.queries[:, objective : objective + 1])
                for objective in range(len(OBJECTIVES))
            ],
        )
        path = export(serving, folder / "fused")
        tf.saved_model.save(merged, str(folder / "merged"), merged.signatures())
        # Loaded models: kept, or their variables would be gone.
        self.loaded = [tf.saved_model.load(str(p)) for p in (path, folder / "merged")]
        fused, other = (loaded.signatures for loaded in self.loaded)
        signatures = {
            FUSED: fused["retrieve_weighted"],
            PEER: merged_request(other),
            DEFAULT: fused["serving_default"],
        }
        return signatures, serving, seconds

    def request(self, batch: int, seed: int) -> Request:
        """Raw inputs of known users with histories of 20 items, and weights."""
        rng = np.random.default_rng(seed)
        users = rng.integers(self.log.users.size, size=batch)
        items = rng.integers(self.log.items.size, size=(3, batch, 20))
        inputs = {"user_id": tf.constant([f"u{u}" for u in users])}
        for name, lists in zip(OBJECTIVES, items, strict=True):
            texts = [[f"i{item}" for item in row] for row in lists]
            inputs[history_name(name)] = tf.constant(texts)
        weights = rng.dirichlet(np.ones(3), batch).astype(np.float32)
        return inputs | {"objective_weights": tf.constant(weights)}


def arguments_of(system: str, request: Request) -> Request:
    """The request as the signature takes it."""
    batch = request["user_id"].shape[0]
    if system == FUSED:
        return request | {"exclude_item_ids": tf.constant([[""]] * batch)}
    if system == DEFAULT:
        return {name: request[name] for name in request if name != "objective_weights"}
    return request


def latencies(
    calls: dict[str, tuple[Signature, list[Request]]], count: int
) -> dict[str, np.ndarray]:
    """Milliseconds per request by name, systems in a new random order every time.

    In a fixed order each would find the caches as the same other one left them.
    """
    rng = np.random.default_rng(0)
    times = {name: np.zeros(count) for name in calls}
    for number in range(-2, count):  # two that are not counted
        for name in rng.permutation(list(calls)):
            signature, requests = calls[name]
            arguments = requests[number % len(requests)]
            began = time.perf_counter()
            signature(**arguments)["item_ids"].numpy()
            if number >= 0:
                times[name][number] = 1e3 * (time.perf_counter() - began)
    return times


def add(
    report: harness.Report,
    name: str,
    setting: dict[str, Any],
    times: np.ndarray,
    **more: float,
) -> None:
    p50, p99 = np.percentile(times, [50, 99])
    rate = 1e3 * setting["batch"] * len(times) / times.sum()
    # In tenths of the run, to show the spread.
    parts = [
        1e3 * setting["batch"] * len(part) / part.sum()
        for part in np.array_split(times, min(10, len(times)))
    ]
    report.add(
        name, setting, "queries/s", parts, overall=rate, p50_ms=p50, p99_ms=p99, **more
    )


def recall(setup: Setup, serving: Any, answers: tf.Tensor, request: Request) -> float:
    """Share of the true k best by weighted score among the answers."""
    raw = {name: request[name] for name in request if name != "objective_weights"}
    fused = fuse(
        serving.query_vectors(raw), request["objective_weights"], serving.scales
    )
    _, positions = setup.catalogue.top_k(fused.numpy(), serving.index.k)
    found = [
        len({f"i{p}".encode() for p in truth} & set(answer))
        for truth, answer in zip(positions, answers.numpy(), strict=True)
    ]
    return float(np.mean(found)) / serving.index.k


def compare(
    report: harness.Report, options: argparse.Namespace, setup: Setup, kind: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        signatures, serving, built = setup.models(kind, Path(folder))
    described = serving.index.describe()
    shown = {name: described[name] for name in described if name != "curve"}
    report.note(f"{kind} built in {built:.1f} s: {shown}")
    many = setup.request(200, seed=1)
    recalls = {
        name: recall(
            setup,
            serving,
            signatures[name](**arguments_of(name, many))["item_ids"],
            many,
        )
        for name in (FUSED, PEER)
    }
    for batch in options.batch:
        requests = [setup.request(batch, seed) for seed in range(20)]
        calls = {
            name: (signature, [arguments_of(name, r) for r in requests])
            for name, signature in signatures.items()
        }
        # The same requests, but all with the weights of the first.
        first = requests[0]["objective_weights"]
        fixed = [request | {"objective_weights": first} for request in requests]
        same = f"{FUSED}, weights never changed"
        calls[same] = (signatures[FUSED], [arguments_of(FUSED, r) for r in fixed])
        times = latencies(calls, options.requests)
        for name, values in times.items():
            more = {f"recall_{options.k}": recalls[name]} if name in recalls else {}
            setting = {"index": kind, "items": options.items, "batch": batch}
            add(report, name, setting, values, **more)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        times_longer = medians[PEER] / medians[FUSED]
        report.note(
            f"{kind}, batch {batch}: merging takes {times_longer:.2f} times as long; "
            "new weights in every request add "
            f"{medians[FUSED] - medians[same]:+.3f} ms (p50)"
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("fused_query", __doc__, argv, SIZES, QUICK)
    report = harness.Report(options)
    report.head()
    setup = Setup(options)
    for kind in options.index:
        compare(report, options, setup, kind)
    report.write()


if __name__ == "__main__":
    main()
