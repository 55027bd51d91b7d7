"""A dense layer whose weights are owned by stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfcsmf.towers.ownership import OwnedParameter, Role, keep_owned, new_owner


class MaskedDense(tf.keras.layers.Layer):
    """`activation(x @ kernel + bias)` with an owner per kernel entry.

    With `stage=None` the raw kernel is used: what the stage in training sees,
    because entries no pass uses are zero (see `tfcsmf.towers.ownership`). With a
    stage, entries of later owners are masked to zero. The bias is trained by
    the first stage and shared by all passes (our reading).

    Args:
      units: output size, >= 1.
      activation: a Keras activation or `None`.
      use_bias: whether to add a bias.
      output: whether this is the tower's last layer, whose output dimensions
        are divided among the objectives.

    Call arguments: float [batch, inputs]; `stage`: 0-based pass or `None`.
    Returns float [batch, units].

    Example:
      >>> layer = MaskedDense(2)
      >>> layer(tf.ones([3, 4])).shape.as_list()
      [3, 2]

    References:
      CSMF, arXiv 2504.12920, selective masking; the ownership is our reading.
    """

    def __init__(
        self,
        units: int,
        activation: str | Callable[[tf.Tensor], tf.Tensor] | None = None,
        use_bias: bool = True,
        output: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` should be at least 1. Received: {units}.")
        self.units = units
        self.activation = tf.keras.activations.get(activation)
        self.use_bias = use_bias
        self.output_layer = output

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the kernel, the bias and their owners."""
        inputs = int(input_shape[-1])
        self.kernel = self.add_weight(
            name="kernel",
            shape=(inputs, self.units),
            initializer=tf.keras.initializers.GlorotUniform(),
        )
        self.kernel_owner = new_owner("kernel_owner", (inputs, self.units))
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units,), initializer="zeros"
            )
            self.bias_owner = new_owner("bias_owner", (1,))
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, stage: int | None = None) -> tf.Tensor:
        """Applies the layer; see the class."""
        outputs = tf.matmul(inputs, self.kernel_of(stage))
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return self.activation(outputs)

    def kernel_of(self, stage: int | None) -> tf.Tensor:
        """Returns the kernel a pass uses, float [inputs, units]."""
        if stage is None:
            return tf.convert_to_tensor(self.kernel)
        return keep_owned(self.kernel, self.kernel_owner, stage)

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns the kernel and the bias with their owners."""
        name = f"{prefix}/{self.name}"
        role: Role = "output" if self.output_layer else "kernel"
        parameters = [
            OwnedParameter(f"{name}/kernel", self.kernel, self.kernel_owner, role)
        ]
        if self.use_bias:
            parameters.append(
                OwnedParameter(f"{name}/bias", self.bias, self.bias_owner, "bias")
            )
        return parameters

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "units": self.units,
            "activation": tf.keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "output": self.output_layer,
        }
