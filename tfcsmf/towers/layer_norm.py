"""Layer normalisation whose scale and offset belong to the first stage."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcsmf.towers.ownership import OwnedParameter, new_owner


class OwnedLayerNorm(tf.keras.layers.Layer):
    """Normalises the last axis: `scale * (x - mean) / deviation + offset`.

    Scale and offset are treated as biases are: the first stage trains them, and all
    passes share them (our reading). There are no moving statistics, so that what a
    frozen pass computes never changes.

    Args:
      epsilon: added to the variance, > 0.

    Call arguments: float [..., width]. Returns the same shape.

    Example:
      >>> OwnedLayerNorm(epsilon=1e-9)(tf.constant([[1.0, 3.0]])).numpy().tolist()
      [[-1.0, 1.0]]
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the scale, the offset and their owners."""
        width = int(input_shape[-1])
        self.scale = self.add_weight(name="scale", shape=(width,), initializer="ones")
        self.offset = self.add_weight(
            name="offset", shape=(width,), initializer="zeros"
        )
        self.scale_owner = new_owner("scale_owner", (1,))
        self.offset_owner = new_owner("offset_owner", (1,))
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the layer; see the class."""
        mean = tf.reduce_mean(inputs, axis=-1, keepdims=True)
        centred = inputs - mean
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + self.epsilon) * self.scale + (
            self.offset
        )

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns the scale and the offset with their owners."""
        name = f"{prefix}/{self.name}"
        return [
            OwnedParameter(f"{name}/scale", self.scale, self.scale_owner, "bias"),
            OwnedParameter(f"{name}/offset", self.offset, self.offset_owner, "bias"),
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {"epsilon": self.epsilon}
