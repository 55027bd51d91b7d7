"""What a trained cascade is worth: metrics, the trade-off curve, who owns what."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcsmf.baselines import build_baselines
from tfcsmf.cascade.encoding import Encoder
from tfcsmf.cascade.model import CSMF
from tfcsmf.config import Config
from tfcsmf.data.prepared import EvaluationSet, PreparedLog
from tfcsmf.evaluation.protocols import evaluate_all, mean_recall
from tfcsmf.evaluation.ranker import VectorRanker
from tfcsmf.retrieval.fusion import fuse
from tfcsmf.towers import FREE


def assess(encoder: Encoder, candidates: np.ndarray, config: Config) -> dict[str, Any]:
    """Returns test metrics of the model and of the references, both protocols.

    Args:
      encoder: of the trained model and its log.
      candidates: float32 [C, d], all blocks.
      config: `evaluation` and `seed` are used.
    """
    log = encoder.log

    def queries(objective: str, part: EvaluationSet) -> np.ndarray:
        stage = log.objectives.index(objective)
        return encoder.queries(part, log.test_histories, stage)

    ranker = _ranker(queries, candidates, config)
    results: dict[str, Any] = {
        "protocols": evaluate_all(ranker, log.test, config.evaluation, config.seed)
    }
    results["baselines"] = {
        name: evaluate_all(reference, log.test, config.evaluation, config.seed)
        for name, reference in build_baselines(log, config.evaluation).items()
    }
    return results


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
    return {
        parameter.name: {
            label: parameter.owner_shares().get(owner, 0.0)
            for owner, label in labels.items()
        }
        for parameter in model.owned_parameters
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
