"""Query towers with one vector per objective: shared bottom, MMoE, PLE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfcsmf.errors import ConfigError
from tfcsmf.towers import MaskedDense, Tower
from tfcsmf.towers.linear_path import beside
from tfcsmf.towers.tower import NO_BLOCKS, Blocks, build_layer

_HEAD = 100  # number of the heads among the layers with dropout; more than there are


class SharedBottomTower(Tower):
    """Hidden layers shared by all objectives, and a linear head for each.

    As in the plain tower, heads see the encodings beside the hidden activations, and
    at the start each gives the sum of the id's and the histories' embeddings.

    With one objective it is the plain two-tower's query tower.

    Args:
      *args: as for `Tower`.
      objectives: number of heads, >= 1.
      wide: each head fills a block of its own, of `dimension / objectives`, and
        leaves the others zero; else every head gives all of `dimension`.
      **kwargs: as for `Tower`.

    Call arguments: those of `Tower`, but `stage` is the objective. Returns float
    [batch, dimension].

    References:
      Caruana, Multitask learning, Machine Learning 1997.
    """

    def __init__(
        self, *args: Any, objectives: int, wide: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.objectives = objectives
        self.wide = wide
        units = self.dimension // objectives if wide else self.dimension
        # Instead of `output_layer`, which is never built. No history is ever closed
        # here: every head sees all of them from the start.
        self.heads = [
            MaskedDense(units, use_bias=False, name=f"head_{objective}")
            for objective in range(objectives)
        ]

    @property
    def dense_layers(self) -> list[MaskedDense]:
        """See `Tower.dense_layers`."""
        return [*self.hidden, *self.heads]

    def build_dense(self, width: int) -> None:
        """See `Tower.build_dense`."""
        activations = self.build_bottom(width)
        for head in self.heads:
            self.build_output(head, activations)

    def build_bottom(self, width: int) -> int:
        """Creates the weights below the heads; returns the width of `bottom`."""
        return self.build_hidden(width)

    def bottom(self, encodings: tf.Tensor, seed: tf.Tensor | None) -> list[tf.Tensor]:
        """Returns the activations below every head, [batch, width] each.

        Without hidden layers they are the encodings, which heads then see alone.
        """
        for index, layer in enumerate(self.hidden):
            encodings = layer(self.dropped(encodings, seed, index))
        return [encodings] * self.objectives

    def vectors(
        self,
        inputs: Mapping[str, tf.Tensor],
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
    ) -> tf.Tensor:
        """Returns the vectors of all objectives, float [batch, S, dimension]."""
        encodings = self.encode(inputs, None, seed, blocks)
        heads = []
        for number, part in enumerate(self.bottom(encodings, seed)):
            seen = beside(part, encodings)
            vector = self.heads[number](self.dropped(seen, seed, _HEAD))
            if self.wide:
                before = number * self.heads[number].units
                after = self.dimension - before - self.heads[number].units
                vector = tf.pad(vector, [[0, 0], [before, after]])
            heads.append(vector)
        return tf.stack(heads, axis=1)

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        stage: int | None = None,
        seed: tf.Tensor | None = None,
        blocks: Blocks = NO_BLOCKS,
        part: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Encodes a batch for one objective, the first by default."""
        # With one head it serves every objective.
        head = min(stage or 0, self.objectives - 1)
        vectors = self.vectors(inputs, seed, blocks)[:, head]
        return vectors if part is None else vectors[part[0] : part[1]]


class MixtureTower(SharedBottomTower):
    """MMoE: experts shared by all objectives, mixed by a gate for each.

    Args:
      *args: as for `Tower`.
      experts: number of experts, each a stack of `hidden_units`; by default one more
        than objectives.
      **kwargs: as for `SharedBottomTower`.

    References:
      Ma et al., Modeling task relationships in multi-task learning with multi-gate
      mixture-of-experts, KDD '18. The towers above the mixture are our linear heads.
    """

    def __init__(self, *args: Any, experts: int | None = None, **kwargs: Any) -> None:
        units, kwargs = _taken_units(kwargs)
        super().__init__(*args, **kwargs)
        count = self.objectives + 1 if experts is None else experts
        activation = self._settings["activation"]
        self.experts = [
            [
                MaskedDense(width, activation, name=f"expert_{expert}_{level}")
                for level, width in enumerate(units)
            ]
            for expert in range(count)
        ]
        self.gates = [
            MaskedDense(count, "softmax", name=f"gate_{objective}")
            for objective in range(self.objectives)
        ]

    @property
    def dense_layers(self) -> list[MaskedDense]:
        """See `Tower.dense_layers`."""
        experts = [layer for expert in self.experts for layer in expert]
        return [*experts, *self.gates, *self.heads]

    def build_bottom(self, width: int) -> int:
        """See `SharedBottomTower.build_bottom`."""
        for gate in self.gates:
            build_layer(gate, width)
        for expert in self.experts:
            below = width
            for layer in expert:
                build_layer(layer, below)
                below = layer.units
        return self.experts[0][-1].units

    def bottom(self, encodings: tf.Tensor, seed: tf.Tensor | None) -> list[tf.Tensor]:
        """See `SharedBottomTower.bottom`."""
        outputs = []
        for expert in self.experts:
            values = encodings
            for index, layer in enumerate(expert):
                values = layer(self.dropped(values, seed, index))
            outputs.append(values)
        return [_mixed(outputs, gate(encodings)) for gate in self.gates]


class ExtractionTower(SharedBottomTower):
    """PLE: experts of single objectives beside shared ones, level by level.

    On each level an objective's gate mixes its own expert and the shared one, and a
    shared gate, but on the last level, mixes all. There is one level per hidden
    layer, and never less than two: a single width is used twice, as one level alone
    is not progressive (that is CGC).

    Args:
      *args: as for `Tower`.
      **kwargs: as for `SharedBottomTower`.

    References:
      Tang et al., Progressive layered extraction (PLE), RecSys '20.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        units, kwargs = _taken_units(kwargs)
        super().__init__(*args, **kwargs)
        units = units if len(units) > 1 else units * 2
        activation = self._settings["activation"]
        # The shared expert comes last; on the last level its gate is not needed.
        self.experts = [
            [
                MaskedDense(width, activation, name=f"expert_{level}_{number}")
                for number in range(self.objectives + 1)
            ]
            for level, width in enumerate(units)
        ]
        self.gates = [
            [
                MaskedDense(
                    2 if number < self.objectives else self.objectives + 1,
                    "softmax",
                    name=f"gate_{level}_{number}",
                )
                for number in range(self.objectives + (level < len(units) - 1))
            ]
            for level in range(len(units))
        ]

    @property
    def dense_layers(self) -> list[MaskedDense]:
        """See `Tower.dense_layers`."""
        levels = [*self.experts, *self.gates]
        return [*(layer for level in levels for layer in level), *self.heads]

    def build_bottom(self, width: int) -> int:
        """See `SharedBottomTower.build_bottom`."""
        for experts, gates in zip(self.experts, self.gates, strict=True):
            for layer in [*experts, *gates]:
                build_layer(layer, width)
            width = experts[0].units
        return width

    def bottom(self, encodings: tf.Tensor, seed: tf.Tensor | None) -> list[tf.Tensor]:
        """See `SharedBottomTower.bottom`."""
        inputs = [encodings] * (self.objectives + 1)
        for level, (experts, gates) in enumerate(
            zip(self.experts, self.gates, strict=True)
        ):
            outputs = [
                expert(self.dropped(values, seed, level))
                for expert, values in zip(experts, inputs, strict=True)
            ]
            inputs = [
                _mixed(
                    outputs
                    if number == self.objectives
                    else [outputs[number], outputs[-1]],
                    gate(inputs[number]),
                )
                for number, gate in enumerate(gates)
            ]
        return inputs


def _taken_units(kwargs: dict[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Takes the hidden layers out of the arguments: experts have them instead."""
    units: Sequence[int] = kwargs.get("hidden_units", (128,))
    if not units:
        raise ConfigError(
            "Experts need a hidden layer: towers.hidden_units should name its size. "
            "Received: no layer."
        )
    return tuple(units), kwargs | {"hidden_units": ()}


def _mixed(parts: list[tf.Tensor], gate: tf.Tensor) -> tf.Tensor:
    """Returns the sum of parts [batch, width] by the weights of a gate [batch, n]."""
    return tf.einsum("bnw,bn->bw", tf.stack(parts, axis=1), gate)
