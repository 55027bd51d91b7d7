"""A sequence model on its own: item tokens, encoder, candidate side, heads, loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfcsmf.data.inputs import CANDIDATE_ID
from tfcsmf.heterrec.candidates import CrossTower, TiedCandidates
from tfcsmf.heterrec.encoder import Encoded, HierarchicalEncoder, History
from tfcsmf.heterrec.layers import Perceptron
from tfcsmf.heterrec.listwise import (
    StepTargets,
    distinct_values,
    step_loss,
    step_targets,
)
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.heterrec.tokens import ItemTokens
from tfcsmf.towers import MaskedEmbedding, OwnedParameter
from tfcsmf.towers.tower import build_layer


@dataclass(frozen=True)
class PredictionSettings:
    """What is predicted, and how much each part counts.

    Attributes:
      steps: K, items ahead.
      window: L, places of a window.
      token_loss: mu, weight of the mean of the token-level losses.
      complete_windows: see `step_targets`.
      temperature: scores are divided by it.
    """

    steps: int = 1
    window: int = 1
    token_loss: float = 0.0
    complete_windows: bool = False
    temperature: float = 1.0


class SequenceModel(tf.keras.Model):
    """Predicts next items from sequences of tokens.

    Head k of the item level reads an encoder's output at a place and is scored against
    the vectors of candidates for the item k ahead; at the token level a head per
    feature is scored against that feature's tower. The total is the mean over the
    steps of

        item loss + mu * mean over features of the token losses.

    Args:
      tokens: embeds items.
      encoder: histories to a vector per place.
      candidate_side: item tokens to item vectors and vectors per feature.
      prediction: see `PredictionSettings`.
      head_units: hidden layers of the heads; `None` scores the encoder's outputs as
        they are, which only one step can.

    Attributes:
      stage: as in `CSMF`: the stage in training. On its own a model has one.

    References:
      HeterRec, arXiv 2503.01469, LMP; weights and means are our reading.
    """

    def __init__(
        self,
        tokens: ItemTokens,
        encoder: HierarchicalEncoder | RecurrentEncoder,
        candidate_side: CrossTower | TiedCandidates,
        prediction: PredictionSettings,
        head_units: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if head_units is None and prediction.steps > 1:
            raise ValueError(
                "`head_units` should be given for more than one step. "
                f"Received: None with {prediction.steps} steps."
            )
        self.tokens = tokens
        self.encoder = encoder
        self.candidate_side = candidate_side
        self.prediction = prediction
        self.stage = 0
        width = tokens.width

        def heads(name: str) -> list[Perceptron]:
            return [
                Perceptron(
                    width,
                    width,
                    head_units or (),
                    linear_path=True,
                    name=f"{name}_{step}",
                )
                for step in range(1, prediction.steps + 1)
            ]

        self.heads = heads("head") if head_units is not None else []
        # By feature, then by step.
        self.token_heads = [
            heads(f"token_{index}_head")
            for index in range(len(tokens.names))
            if self._has_token_level
        ]
        for layer in self._layers_owned:
            build_layer(layer, width)
        self.built = True

    @property
    def _has_token_level(self) -> bool:
        settings = getattr(self.encoder, "settings", None)
        depth = 0 if settings is None else settings.token_layers
        return bool(depth and self.prediction.token_loss)

    @property
    def _layers_owned(self) -> list[Any]:
        heads = [head for heads in self.token_heads for head in heads]
        parts = [self.tokens, self.encoder, self.candidate_side]
        return [*parts, *self.heads, *heads]

    @property
    def dimension(self) -> int:
        """Size of query and item vectors."""
        return int(self.tokens.width)

    @property
    def owned_parameters(self) -> list[OwnedParameter]:
        """Every trainable tensor with its owners."""
        return [p for layer in self._layers_owned for p in layer.owned_parameters("")]

    @property
    def id_tables(self) -> dict[str, MaskedEmbedding]:
        """See `tfcsmf.cascade.stage_step.Trainable`; batches name no rows here."""
        return {}

    def item_tokens(
        self, inputs: Mapping[str, tf.Tensor], stage: int | None = None
    ) -> tf.Tensor:
        """Returns the tokens of items, float [n, M, width]."""
        return self.tokens(inputs, stage)

    def candidate_vectors(
        self, tokens: tf.Tensor, stage: int | None = None
    ) -> tf.Tensor:
        """Returns the vectors of items by their tokens, float [n, d]."""
        return self.candidate_side(tokens, stage)[0]

    def query_vectors(self, history: History, stage: int | None = None) -> tf.Tensor:
        """Returns the query of every sequence: head 1 at its last place, [batch, d].

        A sequence without items has the zero vector before the head.
        """
        last = self.encoder(history, stage).items[:, -1]
        return self.heads[0](last, stage) if self.heads else last

    def compute_loss(
        self, inputs: Mapping[str, Any], training: bool = False
    ) -> tf.Tensor:
        """Returns the mean loss of a batch of `SequenceBatches`."""
        seed = inputs["seed"] if training else None
        items, lengths = inputs["items"], inputs["lengths"]
        tokens = self.tokens(inputs["candidate"], seed=seed)
        candidates, features = self.candidate_side(tokens)
        width = tf.shape(items)[1] - 1
        mask = tf.range(width)[tf.newaxis, :] >= (width + 1 - lengths)[:, tf.newaxis]
        history = History(
            tf.gather(tokens, items[:, :-1]),
            mask,
            inputs["events"][:, :-1],
            inputs["gaps"][:, :-1],
        )
        encoded = self.encoder(history, seed=seed)
        total = tf.zeros([])
        for step in range(1, self.prediction.steps + 1):
            targets = step_targets(
                items,
                lengths,
                step,
                self.prediction.steps,
                self.prediction.window,
                self.prediction.complete_windows,
            )
            total += self._item_loss(encoded, candidates, inputs, targets, step)
            if self.token_heads:
                losses = self._token_losses(
                    encoded, features, inputs, targets, step, seed
                )
                total += self.prediction.token_loss * tf.add_n(losses) / len(losses)
        return total / self.prediction.steps

    def _item_loss(
        self,
        encoded: Encoded,
        candidates: tf.Tensor,
        inputs: Mapping[str, Any],
        targets: StepTargets,
        step: int,
    ) -> tf.Tensor:
        queries = tf.gather_nd(encoded.items, targets.places)
        if self.heads:
            queries = self.heads[step - 1](queries)
        return step_loss(
            queries / self.prediction.temperature,
            candidates,
            targets,
            column_bias=inputs["column_bias"][:, 0],
        )

    def _token_losses(
        self,
        encoded: Encoded,
        features: tf.Tensor,
        inputs: Mapping[str, Any],
        targets: StepTargets,
        step: int,
        seed: tf.Tensor | None,
    ) -> list[tf.Tensor]:
        """Returns the loss of every token, the id's first."""
        tokens = tf.gather_nd(encoded.tokens, targets.places)  # [rows, M, width]
        losses = []
        for index, heads in enumerate(self.token_heads):
            values = inputs["values"][:, index]
            if index == 0 and seed is not None:
                # Hidden ids are all alike: as if missing, they are never predicted.
                hidden = self.tokens.hidden(inputs["candidate"][CANDIDATE_ID], seed)
                values = tf.where(hidden, -1, values)
            first, columns = distinct_values(values)
            queries = heads[step - 1](tokens[:, index])
            losses.append(
                step_loss(
                    queries / self.prediction.temperature,
                    tf.gather(features[:, index], first),
                    targets,
                    columns,
                    tf.gather(inputs["column_bias"][:, index], first),
                    present=values >= 0,
                )
            )
        return losses
