"""Losses: sampled softmax as a TFRS task, and the cross-stage margin."""

from tfcsmf.losses.chunked_softmax import RowMargins, chunked_softmax
from tfcsmf.losses.margin import adaptive_margin, largest_margin, margin_of_leads
from tfcsmf.losses.own_negatives import own_negatives
from tfcsmf.losses.sampled_softmax import SampledSoftmax

__all__ = [
    "RowMargins",
    "SampledSoftmax",
    "adaptive_margin",
    "chunked_softmax",
    "largest_margin",
    "margin_of_leads",
    "own_negatives",
]
