"""The encoder that a configuration names, alone or inside the query tower."""

from __future__ import annotations

from tfcsmf.config import SequenceConfig
from tfcsmf.heterrec.encoder import EncoderSettings, HierarchicalEncoder
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.heterrec.transformer import BlockSettings


def uses_features(settings: SequenceConfig) -> bool:
    """Tells whether an encoder looks at more than ids."""
    return settings.encoder in ("heterrec", "merged")


def build_encoder(
    settings: SequenceConfig, num_tokens: int, num_events: int = 0, num_gaps: int = 0
) -> HierarchicalEncoder | RecurrentEncoder:
    """Builds the encoder of a configuration, named `encoder`.

    Args:
      settings: which encoder, and its sizes.
      num_tokens: M, tokens of an item.
      num_events: see `EncoderSettings`.
      num_gaps: see `EncoderSettings`.
    """
    if settings.encoder == "gru4rec":
        return RecurrentEncoder(
            settings.width, settings.item_layers, settings.dropout, name="encoder"
        )
    return HierarchicalEncoder(
        encoder_settings(settings, num_tokens, num_events, num_gaps),
        block_settings(settings),
        name="encoder",
    )


def encoder_settings(
    settings: SequenceConfig, num_tokens: int, num_events: int = 0, num_gaps: int = 0
) -> EncoderSettings:
    """Returns the shape of the hierarchical encoder that a configuration names.

    SASRec is the case of a single token and no token level, events or gaps.
    """
    rich = uses_features(settings)
    return EncoderSettings(
        num_tokens=num_tokens,
        length=settings.length,
        num_events=num_events if rich else 0,
        num_gaps=num_gaps if rich and settings.time_gaps else 0,
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
