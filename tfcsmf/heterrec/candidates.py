"""The candidate side: one tower per feature, and a cross tower over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfcsmf.heterrec.layers import OwnedLayer, Perceptron
from tfcsmf.towers import OwnedParameter


class CrossTower(OwnedLayer):
    """Item vectors from the tokens of items, and a vector per feature.

    Feature m's token goes through a tower of its own; the outputs, joined, go through
    the cross tower: the item's vector. Token-level prediction is scored against the
    feature's tower, item-level prediction against the cross tower.

    Args:
      num_tokens: M.
      width: of tokens and of all outputs.
      hidden_units: hidden layers of every tower; may be empty.

    Call arguments: float [n, M, width]; `stage`.
    Returns (item vectors [n, width], feature vectors [n, M, width]).

    References:
      HeterRec, arXiv 2503.01469, the figure of the candidate side.
    """

    def __init__(
        self,
        num_tokens: int,
        width: int,
        hidden_units: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_tokens = num_tokens
        self.width = width
        self.hidden_units = tuple(hidden_units)
        self.towers = [
            Perceptron(
                width, width, hidden_units, linear_path=True, name=f"tower_{index}"
            )
            for index in range(num_tokens)
        ]
        self.cross = Perceptron(
            num_tokens * width, width, hidden_units, linear_path=True, name="cross"
        )

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        towers = [(tower, self.width) for tower in self.towers]
        return [*towers, (self.cross, self.num_tokens * self.width)]

    def call(
        self, tokens: tf.Tensor, stage: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Encodes items; see the class."""
        parts = [
            tower(tokens[:, index], stage) for index, tower in enumerate(self.towers)
        ]
        vectors = self.cross(tf.concat(parts, axis=1), stage)
        return vectors, tf.stack(parts, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "num_tokens": self.num_tokens,
            "width": self.width,
            "hidden_units": list(self.hidden_units),
        }


class TiedCandidates(OwnedLayer):
    """The id's embedding as the item's vector, as in SASRec and GRU4Rec."""

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        return []

    def call(
        self, tokens: tf.Tensor, stage: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns as `CrossTower` does; both are the tokens themselves."""
        return tokens[:, 0], tokens

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns nothing: the table belongs to `ItemTokens`."""
        return []
