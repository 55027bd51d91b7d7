"""What the layers of HeterRec share: composition, dropout, a small perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfcsmf.towers import MaskedDense, OwnedParameter
from tfcsmf.towers.linear_path import SMALL, start_linear
from tfcsmf.towers.tower import build_layer


class OwnedLayer(tf.keras.layers.Layer):
    """A layer made of layers that have owned parameters.

    Subclasses make their parts in `__init__` and list them in `parts` with the width
    of their inputs; building and ownership follow from that.

    Call arguments of subclasses: `stage` is the 0-based pass or `None` for the stage
    in training; `seed`, int [2], switches dropout on (stateless, so that a resumed
    run repeats it).
    """

    def parts(self) -> list[tuple[Any, int]]:
        """Returns every part and the width of its inputs."""
        raise NotImplementedError

    def build(self, input_shape: Any) -> None:
        """Creates all weights, whatever inputs come first."""
        for layer, width in self.parts():
            build_layer(layer, width)
        super().build(input_shape)

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns every trainable tensor with its owners."""
        name = f"{prefix}/{self.name}" if prefix else self.name
        return [
            parameter
            for layer, _ in self.parts()
            for parameter in layer.owned_parameters(name)
        ]


def dropped(
    inputs: tf.Tensor, rate: float, seed: tf.Tensor | None, place: int
) -> tf.Tensor:
    """Returns the inputs after dropout, if that is on.

    Args:
      inputs: float, any shape.
      rate: share of the entries set to zero; the others grow to keep the mean.
      seed: int [2], or `None` for no dropout.
      place: tells the places that share a seed apart.
    """
    if seed is None or not rate:
        return inputs
    folded = tf.random.experimental.stateless_fold_in(seed, place)
    return tf.nn.experimental.stateless_dropout(inputs, rate, folded)


def scaled(tokens: tf.Tensor) -> tf.Tensor:
    """Multiplies the tokens of a history by the root of their width.

    Tables begin small; without it, half of what a sequence says at first is where it
    stands (Vaswani et al. 2017, section 3.4, does the same). Candidates stay as they
    are.
    """
    return float(tokens.shape[-1]) ** 0.5 * tokens


def apply_flat(
    layer: MaskedDense, inputs: tf.Tensor, stage: int | None = None
) -> tf.Tensor:
    """Applies a dense layer to the last axis of any shape.

    As one product: with leading axes TensorFlow would make a gradient of the kernel
    for every one of them and add them up.
    """
    width = int(inputs.shape[-1])
    flat = layer(tf.reshape(inputs, [-1, width]), stage)
    shape = tf.concat([tf.shape(inputs)[:-1], [layer.units]], axis=0)
    outputs = tf.reshape(flat, shape)
    return tf.ensure_shape(outputs, [*inputs.shape[:-1], layer.units])


def start_as_sum(layer: MaskedDense, activations: int = 0) -> None:
    """Lets a layer start as the sum of the parts of its inputs.

    Args:
      layer: built, for [activations; parts of as many columns as it has units].
      activations: of hidden layers; they add little at first.
    """
    identity = tf.eye(layer.units)
    rows = int(layer.kernel.shape[0])
    starts = [(first, identity) for first in range(0, rows - activations, layer.units)]
    start_linear(layer.kernel, activations, starts)


def start_small(layer: MaskedDense) -> None:
    """Lets the last layer of a part beside a shortcut add little at first.

    Args:
      layer: built, its kernel as drawn.
    """
    layer.kernel.assign(SMALL * layer.kernel)


class Perceptron(OwnedLayer):
    """Masked dense layers: hidden ones with an activation, then a linear one.

    Args:
      width: of the inputs.
      units: output size.
      hidden_units: sizes of the hidden layers; may be empty.
      activation: of the hidden layers.
      dropout: rate on the outputs of hidden layers in training.
      linear_path: the last layer also sees the inputs, and starts as the sum of their
        parts of `units` columns, which `width` has to be a multiple of: so vectors
        start as the embeddings that they are made of.

    Call arguments: float [..., width]; `stage` and `seed` as in `OwnedLayer`.
    Returns float [..., units].

    Example:
      >>> Perceptron(4, 2, (8,))(tf.ones([3, 5, 4])).shape.as_list()
      [3, 5, 2]
    """

    def __init__(
        self,
        width: int,
        units: int,
        hidden_units: Sequence[int] = (),
        activation: str = "gelu",
        dropout: float = 0.0,
        linear_path: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.units = units
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self.dropout = dropout
        self.linear_path = linear_path
        self.hidden = [
            MaskedDense(size, activation, name=f"hidden_{index}")
            for index, size in enumerate(self.hidden_units)
        ]
        self.last = MaskedDense(units, name="last")

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        widths = [self.width, *self.hidden_units]
        if self.linear_path and self.hidden:
            widths[-1] += self.width
        return list(zip([*self.hidden, self.last], widths, strict=True))

    def build(self, input_shape: Any) -> None:
        """Creates all weights."""
        super().build(input_shape)
        if self.linear_path:
            start_as_sum(self.last, self.hidden_units[-1] if self.hidden else 0)

    def call(
        self,
        inputs: tf.Tensor,
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Applies the layers; see the class."""
        outputs = inputs
        for index, layer in enumerate(self.hidden):
            outputs = apply_flat(layer, outputs, stage)
            outputs = dropped(outputs, self.dropout, seed, index)
        if self.linear_path and self.hidden:
            outputs = tf.concat([outputs, inputs], axis=-1)
        return apply_flat(self.last, outputs, stage)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "width": self.width,
            "units": self.units,
            "hidden_units": list(self.hidden_units),
            "activation": self.activation,
            "dropout": self.dropout,
            "linear_path": self.linear_path,
        }
