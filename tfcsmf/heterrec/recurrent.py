"""GRU4Rec's encoder, behind the same call as the transformer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcsmf.heterrec.encoder import Encoded, History
from tfcsmf.heterrec.layers import OwnedLayer, apply_flat, dropped, scaled
from tfcsmf.towers import MaskedDense


class RecurrentEncoder(OwnedLayer):
    """Gated recurrent units over items of one token.

    With x the input and h the state:

        z = sigmoid(x W_z + h U_z)        r = sigmoid(x W_r + h U_r)
        c = tanh(x W_c + r * (h U_c))     h' = z * h + (1 - z) * c

    each product with a bias. Padding leaves the state as it is.

    Args:
      width: of inputs, states and outputs.
      depth: layers, >= 1.
      dropout: rate on the inputs of every layer in training.

    Call arguments: `history`, whose items have one token; event types and gaps are not
    looked at; `stage` and `seed` as in `OwnedLayer`. Returns `Encoded`.

    References:
      Hidasi et al., Session-based recommendations with recurrent neural networks,
      ICLR '16; the placing of r is that of cuDNN.
    """

    def __init__(
        self, width: int, depth: int = 1, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.depth = depth
        self.dropout = dropout
        self.inputs = [
            MaskedDense(3 * width, name=f"input_{index}") for index in range(depth)
        ]
        self.states = [
            MaskedDense(3 * width, name=f"state_{index}") for index in range(depth)
        ]

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        return [(layer, self.width) for layer in [*self.inputs, *self.states]]

    def call(
        self,
        history: History,
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> Encoded:
        """Encodes a batch; see the class."""
        mask = history.mask[:, :, tf.newaxis]
        outputs = scaled(history.tokens[:, :, 0])
        for index in range(self.depth):
            outputs = dropped(outputs, self.dropout, seed, index)
            outputs = self._layer(index, outputs, mask, stage)
        return Encoded(tf.where(mask, outputs, 0.0))

    def _layer(
        self, index: int, inputs: tf.Tensor, mask: tf.Tensor, stage: int | None
    ) -> tf.Tensor:
        """Returns the states of one layer, float [batch, items, width]."""
        projected = apply_flat(self.inputs[index], inputs, stage)
        recurrent = self.states[index]
        kernel, bias = recurrent.kernel_of(stage), recurrent.bias

        def step(state: tf.Tensor, given: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            x, real = given
            x_keep, x_reset, x_new = tf.split(x, 3, axis=1)
            h = tf.matmul(state, kernel) + bias
            h_keep, h_reset, h_new = tf.split(h, 3, axis=1)
            keep = tf.sigmoid(x_keep + h_keep)
            new = tf.tanh(x_new + tf.sigmoid(x_reset + h_reset) * h_new)
            return tf.where(real, keep * state + (1.0 - keep) * new, state)

        by_time = (
            tf.transpose(projected, [1, 0, 2]),
            tf.transpose(mask, [1, 0, 2]),
        )
        start = tf.zeros([tf.shape(inputs)[0], self.width])
        return tf.transpose(tf.scan(step, by_time, start), [1, 0, 2])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "width": self.width,
            "depth": self.depth,
            "dropout": self.dropout,
        }
