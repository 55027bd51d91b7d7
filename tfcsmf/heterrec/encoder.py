"""HTFL, second half, and HCT: a history of tokens to one vector per place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import tensorflow as tf

from tfcsmf.heterrec.attention import TokenMask, attention_bias
from tfcsmf.heterrec.layers import OwnedLayer, apply_flat, scaled, start_as_sum
from tfcsmf.heterrec.transformer import BlockSettings, BlockStack, TemporalEncoder
from tfcsmf.towers import MaskedDense, MaskedEmbedding


@dataclass(frozen=True)
class History:
    """A batch of sequences, left-padded by whole items.

    Attributes:
      tokens: float [batch, items, M, width], of `ItemTokens`.
      mask: bool [batch, items], whether there is an item.
      events: int [batch, items], rows of event types; `None` without.
      gaps: int [batch, items], rows of time gaps; `None` without.
    """

    tokens: tf.Tensor
    mask: tf.Tensor
    events: tf.Tensor | None = None
    gaps: tf.Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """What an encoder says at every place; only items up to it have a part in it.

    Attributes:
      items: float [batch, items, width], 0 where there is no item.
      tokens: float [batch, items, M, width]; `None` without a token level.
    """

    items: tf.Tensor
    tokens: tf.Tensor | None = None


@dataclass(frozen=True)
class EncoderSettings:
    """The shape of a sequence encoder.

    Attributes:
      num_tokens: M, tokens of an item.
      length: most items of a sequence.
      num_events: rows of the table of event types; 0 for no event token.
      num_gaps: rows of the table of time gaps; 0 for none.
      token_layers: depth over tokens; 0 merges the tokens of an item at once, which is
        the single-token variant.
      item_layers: depth over items; 0 leaves that level out.
      token_mask: see `attention_bias`.
      merge: item vector from the tokens' outputs: `linear` of all of them joined, or
        their `mean`.
    """

    num_tokens: int
    length: int
    num_events: int = 0
    num_gaps: int = 0
    token_layers: int = 1
    item_layers: int = 2
    token_mask: TokenMask = "strict"
    merge: Literal["linear", "mean"] = "linear"


class HierarchicalEncoder(OwnedLayer):
    """Causal transformer over tokens, then over items.

    A history of T items is flattened item by item to T * M tokens (one more per item
    with event types, before the others). The outputs of an item's tokens are merged to
    its vector, and the item level reads those.

    Args:
      settings: see `EncoderSettings`.
      blocks: of both levels.

    Call arguments: `history`; `stage` and `seed` as in `OwnedLayer`.
    Returns `Encoded`.

    References:
      HeterRec, arXiv 2503.01469, HTFL and HCT. The strict token mask, the linear merge
      and the event-type token are our reading.
    """

    def __init__(
        self, settings: EncoderSettings, blocks: BlockSettings, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.block_settings = blocks
        width = blocks.width
        self.num_tokens = settings.num_tokens + int(settings.num_events > 0)
        self.event_table = (
            MaskedEmbedding(settings.num_events, width, name="events")
            if settings.num_events
            else None
        )

        def level(depth: int, name: str, types: int) -> tuple[Any, Any]:
            if not depth:
                return None, None
            temporal = TemporalEncoder(
                width,
                settings.length,
                settings.num_gaps,
                types,
                name=f"{name}_temporal",
            )
            # One dropout on the embeddings, whatever the levels, as in SASRec.
            first = name == "token" or not settings.token_layers
            return temporal, BlockStack(depth, blocks, first, name=f"{name}_blocks")

        self.token_temporal, self.token_blocks = level(
            settings.token_layers, "token", self.num_tokens
        )
        self.item_temporal, self.item_blocks = level(settings.item_layers, "item", 0)
        # A single token that no level has changed is the item's vector as it is.
        plain = self.num_tokens == 1 and not settings.token_layers
        linear = settings.merge == "linear" and not plain
        self.merge = MaskedDense(width, name="merge") if linear else None

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        width = self.block_settings.width
        parts = [
            (self.event_table, 0),
            (self.token_temporal, width),
            (self.token_blocks, width),
            (self.merge, self.num_tokens * width),
            (self.item_temporal, width),
            (self.item_blocks, width),
        ]
        return [(layer, size) for layer, size in parts if layer is not None]

    def build(self, input_shape: Any) -> None:
        """Creates all weights; the merge starts as the sum of the tokens."""
        super().build(input_shape)
        if self.merge is not None:
            start_as_sum(self.merge)

    def call(
        self,
        history: History,
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> Encoded:
        """Encodes a batch; see the class."""
        mask = history.mask
        tokens = self._with_event(history, stage)
        outputs = None
        if self.token_blocks is not None:
            tokens = self._token_level(tokens, history, stage, seed)
            outputs = tokens[:, :, self.num_tokens - self.settings.num_tokens :]
        items = self._merged(tokens, stage)
        if self.item_blocks is not None:
            items = self.item_temporal(
                items[:, :, tf.newaxis], mask, history.gaps, stage
            )[:, :, 0]
            own = _other(seed, 2)
            items = self.item_blocks(items, attention_bias(mask), stage, own)
        return Encoded(tf.where(mask[:, :, tf.newaxis], items, 0.0), outputs)

    def _with_event(self, history: History, stage: int | None) -> tf.Tensor:
        """Returns the tokens, that of the event type first: later ones see it."""
        tokens = scaled(history.tokens)
        if self.event_table is None:
            return tokens
        if history.events is None:
            raise ValueError(
                "`history.events` should be given where `num_events` is set. "
                "Received: None."
            )
        event = self.event_table(history.events, stage)[:, :, tf.newaxis]
        return tf.concat([event, tokens], axis=2)

    def _token_level(
        self,
        tokens: tf.Tensor,
        history: History,
        stage: int | None,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        tokens = self.token_temporal(tokens, history.mask, history.gaps, stage)
        shape = tf.shape(tokens)
        width = self.block_settings.width
        bias = attention_bias(history.mask, self.num_tokens, self.settings.token_mask)
        flat = tf.reshape(tokens, [shape[0], shape[1] * self.num_tokens, width])
        flat = self.token_blocks(flat, bias, stage, _other(seed, 1))
        return tf.reshape(flat, [-1, shape[1], self.num_tokens, width])

    def _merged(self, tokens: tf.Tensor, stage: int | None) -> tf.Tensor:
        """Returns one vector per item, float [batch, items, width]."""
        if self.merge is None:
            return tf.reduce_mean(tokens, axis=2)
        shape = tf.shape(tokens)
        width = self.num_tokens * self.block_settings.width
        joined = tf.reshape(tokens, [shape[0], shape[1], width])
        return apply_flat(self.merge, joined, stage)

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return super().get_config() | {
            "settings": asdict(self.settings),
            "blocks": asdict(self.block_settings),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HierarchicalEncoder:
        """Builds the layer that `get_config` described."""
        settings = EncoderSettings(**config["settings"])
        blocks = BlockSettings(**config["blocks"])
        return cls(**config | {"settings": settings, "blocks": blocks})


def _other(seed: tf.Tensor | None, level: int) -> tf.Tensor | None:
    """Returns a seed of one level's own."""
    if seed is None:
        return None
    return tf.random.experimental.stateless_fold_in(seed, level)
