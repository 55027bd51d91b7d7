"""Masked towers: layers whose parameters are owned by stages."""

from tfcsmf.towers.history_features import HistoryFeatures
from tfcsmf.towers.layer_norm import OwnedLayerNorm
from tfcsmf.towers.masked_dense import MaskedDense
from tfcsmf.towers.masked_embedding import POOLING, Combiner, MaskedEmbedding, RowBlock
from tfcsmf.towers.normalization import block_slack, bounded
from tfcsmf.towers.ownership import CLOSED, FREE, OwnedParameter, keep_owned
from tfcsmf.towers.tower import FeatureSpec, Tower

__all__ = [
    "CLOSED",
    "FREE",
    "POOLING",
    "Combiner",
    "FeatureSpec",
    "HistoryFeatures",
    "MaskedDense",
    "MaskedEmbedding",
    "OwnedLayerNorm",
    "OwnedParameter",
    "RowBlock",
    "Tower",
    "block_slack",
    "bounded",
    "keep_owned",
]
