"""A stack of causal transformer blocks with its temporal encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import tensorflow as tf

from tfcsmf.heterrec.attention import SelfAttention
from tfcsmf.heterrec.layers import OwnedLayer, Perceptron, dropped, start_small
from tfcsmf.towers import MaskedEmbedding, OwnedLayerNorm


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a model share.

    Attributes:
      width: of the vectors.
      heads: of attention; divides `width`.
      feed_forward: hidden units of the feed-forward part.
      dropout: rate on what both parts add, and on the stack's inputs.
      norm: `post`, as drawn: Y = Norm(X + part(X)); or `pre`, Y = X + part(Norm(X))
        with a last Norm after the stack.
    """

    width: int
    heads: int = 2
    feed_forward: int = 256
    dropout: float = 0.0
    norm: Literal["post", "pre"] = "post"


class TransformerBlock(OwnedLayer):
    """Self-attention, then a feed-forward part, each with a shortcut and a norm.

    As drawn (`post`): B = Norm(X + MHSA(X)); Y = Norm(B + FFN(B)). Both parts add
    little at first: a stack of any depth begins near its inputs, normed, and learns
    what the last item tells as fast as a shallow one.

    Args:
      settings: see `BlockSettings`.

    Call arguments: float [batch, n, width]; `bias`, see `attention_bias`; `stage` and
    `seed` as in `OwnedLayer`. Returns float [batch, n, width].

    References:
      HeterRec, arXiv 2503.01469, the figure of HCT. The start is our choice; Zhang
      et al., Fixup initialization, 2019, section 3, have it zero.
    """

    def __init__(self, settings: BlockSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        width = settings.width
        self.attention = SelfAttention(width, settings.heads, name="attention")
        self.feed_forward = Perceptron(
            width,
            width,
            (settings.feed_forward,),
            dropout=settings.dropout,
            name="feed_forward",
        )
        self.norms = [OwnedLayerNorm(name=f"norm_{index}") for index in range(2)]

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        layers = [self.attention, self.feed_forward, *self.norms]
        return [(layer, self.settings.width) for layer in layers]

    def build(self, input_shape: Any) -> None:
        """Creates all weights; both parts start small."""
        super().build(input_shape)
        start_small(self.attention.mixture)
        start_small(self.feed_forward.last)

    def call(
        self,
        inputs: tf.Tensor,
        bias: tf.Tensor,
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Applies the block; see the class."""
        first, second = self.norms
        rate, pre = self.settings.dropout, self.settings.norm == "pre"
        seen = first(inputs) if pre else inputs
        attended = self.attention(seen, bias, stage)
        inputs = inputs + dropped(attended, rate, seed, 10)
        if not pre:
            inputs = first(inputs)
        seen = second(inputs) if pre else inputs
        fed = self.feed_forward(seen, stage, seed)
        inputs = inputs + dropped(fed, rate, seed, 11)
        return inputs if pre else second(inputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        return super().get_config() | {"settings": asdict(self.settings)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TransformerBlock:
        """Builds the layer that `get_config` described."""
        return cls(**config | {"settings": BlockSettings(**config["settings"])})


class TemporalEncoder(OwnedLayer):
    """Adds what tells when: the place in the sequence and the gap before it.

    Places count from the oldest item that is kept, not from a fixed width: padding
    changes nothing, and a sequence's output at a place equals what its beginning
    alone would give, so that training sees what serving asks.

    Args:
      width: of the vectors.
      length: most items of a sequence.
      num_gaps: rows of the table of gaps (`tfcsmf.data.sequences`); 0 for no gaps.
      types: tokens per item, told apart by an embedding each; 0 for none.

    Call arguments: float [batch, items, tokens, width]; `mask`, bool [batch, items],
    left-padded; `gaps`, int [batch, items] rows, or `None`; `stage`. Returns the same
    shape.

    References:
      HeterRec, arXiv 2503.01469; item position, log-bucketed time gap and token type
      are our reading.
    """

    def __init__(
        self, width: int, length: int, num_gaps: int = 0, types: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.length = length
        self.num_gaps = num_gaps
        self.types = types

        def table(rows: int, name: str) -> MaskedEmbedding | None:
            return MaskedEmbedding(rows, width, name=name) if rows else None

        self.places = MaskedEmbedding(length, width, name="places")
        self.gap_table = table(num_gaps, "gaps")
        self.type_table = table(types, "types")

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        tables = [self.places, self.gap_table, self.type_table]
        return [(table, 0) for table in tables if table is not None]

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor,
        gaps: tf.Tensor | None = None,
        stage: int | None = None,
    ) -> tf.Tensor:
        """Adds the embeddings; see the class."""
        place = tf.maximum(tf.cumsum(tf.cast(mask, tf.int32), axis=1) - 1, 0)
        added = self.places(place, stage)  # [batch, items, width]
        if self.gap_table is not None and gaps is not None:
            added += self.gap_table(gaps, stage)
        inputs += added[:, :, tf.newaxis]
        if self.type_table is not None:
            inputs += self.type_table(tf.range(self.types), stage)
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "width": self.width,
            "length": self.length,
            "num_gaps": self.num_gaps,
            "types": self.types,
        }


class BlockStack(OwnedLayer):
    """Transformer blocks one after the other; with `pre`, a last norm.

    Args:
      depth: number of blocks, >= 1.
      settings: see `BlockSettings`.
      drop_inputs: dropout on the inputs too, which a stack on top of another has
        no need of: what the blocks below added to them was dropped already.

    Call arguments and result as in `TransformerBlock`.
    """

    def __init__(
        self,
        depth: int,
        settings: BlockSettings,
        drop_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.depth = depth
        self.settings = settings
        self.drop_inputs = drop_inputs
        self.blocks = [
            TransformerBlock(settings, name=f"block_{index}") for index in range(depth)
        ]
        pre = settings.norm == "pre"
        self.last_norm = OwnedLayerNorm(name="last_norm") if pre else None

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        layers = [*self.blocks, *([self.last_norm] if self.last_norm else [])]
        return [(layer, self.settings.width) for layer in layers]

    def call(
        self,
        inputs: tf.Tensor,
        bias: tf.Tensor,
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Applies the blocks; see the class."""
        rate = self.settings.dropout if self.drop_inputs else 0.0
        outputs = dropped(inputs, rate, seed, 1)
        for index, block in enumerate(self.blocks):
            own = seed
            if seed is not None:
                own = tf.random.experimental.stateless_fold_in(seed, 100 + index)
            outputs = block(outputs, bias, stage, own)
        return self.last_norm(outputs) if self.last_norm is not None else outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the depth and the settings."""
        return super().get_config() | {
            "depth": self.depth,
            "settings": asdict(self.settings),
            "drop_inputs": self.drop_inputs,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BlockStack:
        """Builds the layer that `get_config` described."""
        return cls(**config | {"settings": BlockSettings(**config["settings"])})
