"""Builds the sequence model of a configuration."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.model import feature_specs, hidden_ids
from tfcsmf.config import Config
from tfcsmf.data.prepared import PreparedLog
from tfcsmf.data.sequences import Sequences
from tfcsmf.heterrec.candidates import CrossTower, TiedCandidates
from tfcsmf.heterrec.model import PredictionSettings, SequenceModel
from tfcsmf.heterrec.settings import build_encoder, uses_features
from tfcsmf.heterrec.tokens import ItemTokens


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
    features = feature_specs(log.items) if rich else ()
    hidden = None
    if features and settings.id_prior:
        counts = np.bincount(sequences.items, minlength=log.items.size)
        hidden = hidden_ids(log, settings.id_prior, counts)
    tokens = ItemTokens(
        log.items.num_rows,
        features,
        settings.width,
        id_dropout=settings.id_dropout,
        id_hidden=hidden,
        name="items",
    )
    count = len(tokens.names)
    encoder = build_encoder(settings, count, sequences.num_events, sequences.num_gaps)
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
