"""The section of sequence encoders (`tfcsmf.heterrec`)."""

from __future__ import annotations

from typing import Literal

import pydantic

from tfcsmf._config_base import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Share,
)
from tfcsmf.errors import ConfigError

EncoderName = Literal["heterrec", "merged", "sasrec", "gru4rec"]


class SequenceTraining(Section):
    """How a sequence encoder is trained on its own."""

    optimizer: Literal["adam", "adagrad"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    # As in the cascade; SASRec on Beauty learned next to nothing in an epoch at .001.
    embedding_learning_rate: PositiveFloat = 5e-3
    weight_decay: NonNegativeFloat = 0.0
    # Events per batch, whatever the lengths of its sequences.
    batch_events: Positive = 2048
    epochs: Positive = 50
    # Epochs without improvement before training stops; 0 never stops early.
    patience: NonNegative = 5
    # What is validated and kept is an average over the ends of epochs, in which an
    # epoch counts this many times what the next one does; 0 keeps single epochs,
    # which is better where there are fewer than ten.
    averaging: Share = 0.8
    # Train once more from the start, on the validation events too, for as many epochs
    # as validation found best, and keep that: what one would serve. Twice the time;
    # without validation pairs it is the only training, of all `epochs`.
    refit: bool = False


class SequenceConfig(Section):
    """A sequence encoder and its prediction task (method section 2)."""

    # heterrec: a token per feature, two levels. merged: one token per item, of all its
    # features. sasrec and gru4rec: ids alone, tied to the item vectors.
    encoder: EncoderName = "heterrec"
    # Last events that are read.
    length: Positive = 50
    # Of all vectors of the encoder; alone also of what is indexed.
    width: Positive = 64
    # Depth over tokens (heterrec alone), and over items (of gru4rec: its layers).
    token_layers: NonNegative = 1
    item_layers: NonNegative = 2
    heads: Positive = 2
    feed_forward: Positive = 256
    dropout: Share = 0.2
    # As drawn, or norms first; docs/heterrec.md has both.
    norm: Literal["post", "pre"] = "post"
    # What a token may not see: later tokens, or tokens of later items.
    token_mask: Literal["strict", "item"] = "strict"
    merge: Literal["linear", "mean"] = "linear"
    # Time gaps, where time is known. Requests then have to say when things happened.
    time_gaps: bool = True
    # Hidden layers of every feature's tower and of the cross tower, and of the heads.
    tower_units: tuple[Positive, ...] = ()
    head_units: tuple[Positive, ...] = (64,)
    # LMP: steps ahead (K), window (L), and the weight of the token level (mu).
    # sasrec and gru4rec predict one step from windows of one place.
    steps: Positive = 2
    window: Positive = 3
    token_loss: NonNegativeFloat = 1.0
    # Windows in which every place has all K steps after it, as in our reading of the
    # paper; they leave the last items, and most of short sequences, out.
    complete_windows: bool = False
    temperature: PositiveFloat = 1.0
    # Catalogues of at most so many trained items are candidates as a whole; larger
    # ones the items of the batch and uniform ones, corrected by how likely they are.
    whole_catalogue: NonNegative = 20_000
    uniform_negatives: NonNegative = 4096
    # Share of items whose id is UNKNOWN in training, for items without events.
    id_dropout: Share = 0.02
    # The same by rarity, as `towers.candidate_id_prior`: c / (c + n) for an item with n
    # events. The larger of both counts. Only for encoders of features, where items
    # have some.
    id_prior: NonNegativeFloat = 0.0
    training: SequenceTraining = SequenceTraining()

    @pydantic.model_validator(mode="after")
    def _check(self) -> SequenceConfig:
        if self.width % self.heads:
            raise ConfigError(
                "sequence.heads should divide sequence.width. "
                f"Received: {self.heads} heads and a width of {self.width}."
            )
        if self.encoder != "heterrec" and not self.item_layers:
            raise ConfigError(
                f"sequence.item_layers should be at least 1 with the encoder "
                f"{self.encoder!r}. Received: 0."
            )
        return self
