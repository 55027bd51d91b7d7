"""Causal self-attention over left-padded sequences."""

from __future__ import annotations

from typing import Any, Literal

import tensorflow as tf

from tfcsmf.heterrec.layers import OwnedLayer, apply_flat
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.towers import MaskedDense

TokenMask = Literal["strict", "item"]


def attention_bias(
    mask: tf.Tensor, tokens_per_item: int = 1, token_mask: TokenMask = "strict"
) -> tf.Tensor:
    """Returns what is added to attention scores, 0 or a very low number.

    A token attends to real tokens that are not after it. With `item`, the tokens of
    one item also attend to all others of that item.

    Args:
      mask: bool [batch, items], whether there is an item.
      tokens_per_item: tokens that every item is flattened to, >= 1.
      token_mask: what counts as "after": later tokens, or tokens of later items.

    Returns:
      float [batch, 1, n, n] with n = items * tokens_per_item: of every attending
      (third axis) to every attended token. It is computed once for all layers.

    Example:
      >>> bias = attention_bias(tf.constant([[False, True, True]]))
      >>> tf.cast(bias[0, 0] == 0, tf.int32).numpy().tolist()
      [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    real = tf.repeat(mask, tokens_per_item, axis=1)
    order = tf.range(tf.shape(real)[1])
    if token_mask == "item":
        order //= tokens_per_item
    not_after = order[:, tf.newaxis] >= order[tf.newaxis, :]
    allowed = not_after & real[:, tf.newaxis, tf.newaxis, :]
    return tf.where(allowed, 0.0, EXCLUDED)


class SelfAttention(OwnedLayer):
    """Multi-head scaled dot-product attention of a sequence to itself.

    Memory of the backward pass: the weights, batch * heads * n^2 floats. Batches hold
    a fixed number of events, so this grows as n, not as n^2, per batch.

    Args:
      width: of the inputs and outputs.
      heads: divides `width`.

    Call arguments: float [batch, n, width]; `bias`, see `attention_bias`; `stage`.
    Returns float [batch, n, width].

    References:
      Vaswani et al., Attention is all you need, 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if heads < 1 or width % heads:
            raise ValueError(
                "`heads` should be at least 1 and divide `width`. "
                f"Received: {heads} heads and a width of {width}."
            )
        self.width = width
        self.heads = heads
        self.projection = MaskedDense(3 * width, name="projection")
        self.mixture = MaskedDense(width, name="mixture")

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        return [(self.projection, self.width), (self.mixture, self.width)]

    def call(
        self, inputs: tf.Tensor, bias: tf.Tensor, stage: int | None = None
    ) -> tf.Tensor:
        """Applies the layer; see the class."""
        batch, length, _ = tf.unstack(tf.shape(inputs))
        size = self.width // self.heads
        projected = apply_flat(self.projection, inputs, stage)
        projected = tf.reshape(projected, [batch, length, 3, self.heads, size])
        # [3, batch, heads, n, size]
        query, key, value = tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]))
        scores = tf.matmul(query * size**-0.5, key, transpose_b=True) + bias
        mixed = tf.matmul(tf.nn.softmax(scores), value)  # [batch, heads, n, size]
        mixed = tf.transpose(mixed, [0, 2, 1, 3])
        mixed = tf.reshape(mixed, [batch, length, self.width])
        return apply_flat(self.mixture, mixed, stage)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {"width": self.width, "heads": self.heads}
