"""HeterRec: sequence encoders whose items are several tokens (arXiv 2503.01469)."""

from tfcsmf.heterrec.attention import SelfAttention, attention_bias
from tfcsmf.heterrec.candidates import CrossTower, TiedCandidates
from tfcsmf.heterrec.encoder import (
    Encoded,
    EncoderSettings,
    HierarchicalEncoder,
    History,
)
from tfcsmf.heterrec.layers import Perceptron
from tfcsmf.heterrec.listwise import (
    StepTargets,
    distinct_values,
    position_weights,
    step_loss,
    step_targets,
    window_pairs,
)
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.heterrec.tokens import ItemTokens
from tfcsmf.heterrec.transformer import BlockSettings, BlockStack, TransformerBlock

__all__ = [
    "BlockSettings",
    "BlockStack",
    "CrossTower",
    "Encoded",
    "EncoderSettings",
    "HierarchicalEncoder",
    "History",
    "ItemTokens",
    "Perceptron",
    "RecurrentEncoder",
    "SelfAttention",
    "StepTargets",
    "TiedCandidates",
    "TransformerBlock",
    "attention_bias",
    "distinct_values",
    "position_weights",
    "step_loss",
    "step_targets",
    "window_pairs",
]
