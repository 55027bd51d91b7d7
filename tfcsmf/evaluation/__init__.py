"""Whole-catalogue evaluation: exact top-k, metrics, protocols, intervals.

The report (`tfcsmf.evaluation.report`) is imported by its own name: it needs
matplotlib and jinja2, which measuring does not.
"""

from tfcsmf.evaluation.bootstrap import (
    bootstrap_means,
    mean_interval,
    paired_difference,
    pooled_interval,
)
from tfcsmf.evaluation.metrics import metric_names, per_user_metrics
from tfcsmf.evaluation.protocols import (
    PROTOCOLS,
    ProtocolQueries,
    apply_protocol,
    evaluate,
    evaluate_all,
    mean_recall,
    user_metrics,
)
from tfcsmf.evaluation.ranker import Ranker, VectorRanker
from tfcsmf.evaluation.topk import Catalogue, top_k, top_k_scores

__all__ = [
    "PROTOCOLS",
    "Catalogue",
    "ProtocolQueries",
    "Ranker",
    "VectorRanker",
    "apply_protocol",
    "bootstrap_means",
    "evaluate",
    "evaluate_all",
    "mean_interval",
    "mean_recall",
    "metric_names",
    "paired_difference",
    "per_user_metrics",
    "pooled_interval",
    "top_k",
    "top_k_scores",
    "user_metrics",
]
