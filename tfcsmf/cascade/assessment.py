"""What a trained cascade is worth: metrics, the trade-off curve, who owns what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfcsmf.baselines import build_baselines
from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF
from tfcsmf.config import Config
from tfcsmf.data.prepared import EvaluationSet, PreparedLog
from tfcsmf.evaluation.protocols import evaluate_parts, mean_recall
from tfcsmf.evaluation.ranker import Ranker, VectorRanker
from tfcsmf.retrieval.fusion import fuse
from tfcsmf.towers import FREE


def assess(
    encoder: Encoder,
    candidates: np.ndarray,
    config: Config,
    parts: Iterable[PreparedLog] | None = None,
) -> dict[str, Any]:
    """Returns test metrics of the model and of the references, both protocols.

    Args:
      encoder: of the trained model and its log.
      candidates: float32 [C, d], all blocks.
      config: `evaluation` and `seed` are used.
      parts: logs that have the test queries of some users each; the encoder's log by
        default.
    """

    def systems(part: PreparedLog) -> dict[str, Ranker]:
        own = encoder
        if part is not encoder.log:
            own = Encoder(encoder.model, part, encoder.history_length)

        def queries(objective: str, asked: EvaluationSet) -> np.ndarray:
            stage = part.objectives.index(objective)
            return own.queries(asked, part.test_histories, stage)

        references = build_baselines(part, config.evaluation)
        return {_MODEL: _ranker(queries, candidates, config), **references}

    logs = [encoder.log] if parts is None else parts
    results = evaluate_parts(
        ((systems(part), part.test) for part in logs), config.evaluation, config.seed
    )
    return {"protocols": results.pop(_MODEL), "baselines": results}


_MODEL = "model"  # beside the names of references


def tradeoff(
    encoder: Encoder, candidates: np.ndarray, scales: np.ndarray, config: Config
) -> dict[str, Any] | None:
    """Returns recall of the first and the last objective as weights move.

    Measured on validation pairs, so that looking at it spends no test data.

    Returns:
      The points, or `None` with one objective or without validation pairs.
    """
    log = encoder.log
    ends = (0, len(log.objectives) - 1)
    names = [log.objectives[end] for end in ends]
    sets = {name: log.validation[name] for name in names}
    if ends[0] == ends[1] or not all(len(part.users) for part in sets.values()):
        return None
    vectors = {
        name: np.stack(
            [encoder.queries(part, log.train_histories, end) for end in ends], axis=1
        )
        for name, part in sets.items()
    }
    chosen = scales[list(ends)]
    k = config.evaluation.validation_k
    points = []
    for share in np.linspace(0.0, 1.0, config.evaluation.tradeoff_points):
        weights = np.array([1.0 - share, share], np.float32)
        fused = {
            name: np.asarray(fuse(stacked, weights, chosen))
            for name, stacked in vectors.items()
        }
        ranker = _ranker(lambda name, _, fused=fused: fused[name], candidates, config)
        points.append(
            {
                "weights": dict(zip(names, weights.tolist(), strict=True)),
                "recall": {
                    name: mean_recall(ranker, part, name, k)
                    for name, part in sets.items()
                },
            }
        )
    return {"objectives": names, "k": k, "protocol": "unseen", "points": points}


def _ranker(queries: Any, candidates: np.ndarray, config: Config) -> VectorRanker:
    return VectorRanker(
        queries,
        candidates,
        config.evaluation.query_batch,
        config.evaluation.candidate_block,
    )


def capacity_shares(model: CSMF, log: PreparedLog) -> dict[str, dict[str, float]]:
    """Returns the share of each layer every objective owns, and `FREE`."""
    labels = dict(enumerate(log.objectives)) | {FREE: "FREE"}
    counts: dict[str, Counter[int]] = {}
    for parameter in model.owned_parameters:
        counts.setdefault(parameter.whole, Counter()).update(parameter.owner_counts())
    return {
        name: {label: owned[owner] / owned.total() for owner, label in labels.items()}
        for name, owned in counts.items()
    }


def describe_model(model: CSMF, stages: int) -> dict[str, Any]:
    """Returns the `model` section of metrics.json."""
    dense = sum(p.size for p in model.owned_parameters if p.role != "table")
    return {
        "parameters": model.num_parameters,
        "dense_parameters": dense,
        "dimension": model.dimension,
        "blocks": model.block_sizes(stages),
    }
