"""Builds the sequence model of a configuration."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcsmf.cascade.model import feature_specs
from tfcsmf.config import Config, SequenceConfig
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.sequences import Sequences
from tfcsmf.heterrec.candidates import CrossTower, TiedCandidates
from tfcsmf.heterrec.encoder import EncoderSettings, HierarchicalEncoder
from tfcsmf.heterrec.model import PredictionSettings, SequenceModel
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.heterrec.tokens import ItemTokens
from tfcsmf.heterrec.transformer import BlockSettings


def uses_features(settings: SequenceConfig) -> bool:
    """Tells whether an encoder looks at more than ids."""
    return settings.encoder in ("heterrec", "merged")


def build_sequence_model(
    config: Config, log: PreparedLog, sequences: Sequences
) -> SequenceModel:
    """Builds the untrained model of `config.sequence` for a prepared log.

    Args:
      config: `sequence` and `seed` are used.
      log: gives the catalogue's features.
      sequences: of training; say which tables of events and gaps there are.
    """
    tf.keras.utils.set_random_seed(config.seed)
    settings = config.sequence
    rich = uses_features(settings)
    tokens = ItemTokens(
        log.items.num_rows,
        feature_specs(log.items) if rich else (),
        settings.width,
        id_dropout=settings.id_dropout,
        name="items",
    )
    count = len(tokens.names)
    encoder: Any
    if settings.encoder == "gru4rec":
        encoder = RecurrentEncoder(
            settings.width, settings.item_layers, settings.dropout, name="encoder"
        )
    else:
        encoder = HierarchicalEncoder(
            encoder_settings(settings, count, sequences),
            block_settings(settings),
            name="encoder",
        )
    if not rich:
        prediction = PredictionSettings(temperature=settings.temperature)
        return SequenceModel(
            tokens, encoder, TiedCandidates(name="candidates"), prediction
        )
    side = CrossTower(count, settings.width, settings.tower_units, name="candidates")
    prediction = PredictionSettings(
        settings.steps,
        settings.window,
        settings.token_loss,
        settings.complete_windows,
        settings.temperature,
    )
    return SequenceModel(tokens, encoder, side, prediction, settings.head_units)


def encoder_settings(
    settings: SequenceConfig, num_tokens: int, sequences: Sequences
) -> EncoderSettings:
    """Returns the shape of the hierarchical encoder that a configuration names.

    SASRec is the case of a single token and no token level, events or gaps.
    """
    rich = uses_features(settings)
    return EncoderSettings(
        num_tokens=num_tokens,
        length=settings.length,
        num_events=sequences.num_events if rich else 0,
        num_gaps=sequences.num_gaps if rich else 0,
        token_layers=settings.token_layers if settings.encoder == "heterrec" else 0,
        item_layers=settings.item_layers,
        token_mask=settings.token_mask,
        merge=settings.merge,
    )


def block_settings(settings: SequenceConfig) -> BlockSettings:
    """Returns what the blocks of a configuration's transformers share."""
    return BlockSettings(
        settings.width,
        settings.heads,
        settings.feed_forward,
        settings.dropout,
        settings.norm,
    )
