"""HTFL, first half: an item as one token per feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import CANDIDATE_ID
from tfcsmf.data.rows import UNKNOWN
from tfcsmf.heterrec.layers import OwnedLayer
from tfcsmf.towers import FeatureSpec, MaskedDense, MaskedEmbedding, OwnedParameter


class ItemTokens(OwnedLayer):
    """Embeds items as M tokens: the id first, then every feature, in fixed order.

    Ids, categories and numeric buckets are looked up, several values are averaged, and
    vectors are projected. A value that is missing has a learned embedding: the row
    `MISSING`, or for a vector the kernel row of the flag in its last column. Histories
    and targets share all of it.

    Args:
      num_ids: rows of the id table.
      features: fitted features, in order; M is one more than there are.
      width: of a token.
      ownership: of all tables; see `MaskedEmbedding`.
      id_dropout: probability that training sees `UNKNOWN` for the id of an item, which
        gives items without training events a trained embedding.
      id_hidden: the same by row of the id table, float [num_ids]; of both chances the
        larger counts. Data, and no part of the saved configuration.

    Call arguments: `inputs`, item inputs as `tfcsmf.data.inputs.EntityInputs` gives
    them for n items; `stage` and `seed` as in `OwnedLayer`.
    Returns float [n, M, width].

    Example:
      >>> tokens = ItemTokens(9, [FeatureSpec("price", "numeric", 6)], 4)
      >>> inputs = {"item_id": tf.constant([3, 4]), "price": tf.constant([5, 1])}
      >>> tokens(inputs).shape.as_list()
      [2, 2, 4]

    References:
      HeterRec, arXiv 2503.01469, the figure of HTFL.
    """

    def __init__(
        self,
        num_ids: int,
        features: Sequence[FeatureSpec | Mapping[str, Any]],
        width: int,
        ownership: Any = "entries",
        id_dropout: float = 0.0,
        id_hidden: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_ids = num_ids
        self.features = tuple(
            FeatureSpec(**spec) if isinstance(spec, Mapping) else spec
            for spec in features
        )
        self.width = width
        self.ownership = ownership
        self.id_dropout = id_dropout
        chances = None if id_hidden is None else tf.constant(id_hidden, tf.float32)
        self._id_hidden: Callable[[], tf.Tensor | None] = lambda: chances
        self.id_table = MaskedEmbedding(num_ids, width, ownership, name=CANDIDATE_ID)
        # Numbered, because TensorFlow allows few of the characters of column names.
        self.encoders = [
            MaskedDense(width, use_bias=False, name=f"feature_{index}")
            if spec.kind == "vector"
            else MaskedEmbedding(spec.size, width, ownership, name=f"feature_{index}")
            for index, spec in enumerate(self.features)
        ]

    @property
    def names(self) -> list[str]:
        """What the tokens are, in order."""
        return [CANDIDATE_ID, *(spec.name for spec in self.features)]

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        sizes = [spec.size for spec in self.features]
        return [(self.id_table, 0), *zip(self.encoders, sizes, strict=True)]

    def call(
        self,
        inputs: Mapping[str, tf.Tensor],
        stage: int | None = None,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Embeds items; see the class."""
        ids = inputs[CANDIDATE_ID]
        if seed is not None:
            ids = tf.where(self.hidden(ids, seed), UNKNOWN, ids)
        tokens = [self.id_table(ids, stage)]
        for spec, encoder in zip(self.features, self.encoders, strict=True):
            embed = encoder.pool if spec.kind == "multi" else encoder
            tokens.append(embed(inputs[spec.name], stage))
        return tf.stack(tokens, axis=1)

    def hidden(self, ids: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Tells which ids training does not see with a seed, bool [n]."""
        chance, by_row = self.id_dropout, self._id_hidden()
        if by_row is not None:
            chance = tf.maximum(tf.gather(by_row, ids), chance)
        return tf.random.stateless_uniform(tf.shape(ids), seed) < chance

    def owned_parameters(self, prefix: str) -> list[OwnedParameter]:
        """Returns every trainable tensor; features go by their own names."""
        parameters = super().owned_parameters(prefix)
        place = f"{prefix}/{self.name}" if prefix else self.name
        named = {
            f"{place}/{encoder.name}/": f"{place}/features/{spec.name}/"
            for spec, encoder in zip(self.features, self.encoders, strict=True)
        }
        result = []
        for parameter in parameters:
            folder = parameter.name.rpartition("/")[0] + "/"
            name = parameter.name.replace(folder, named.get(folder, folder), 1)
            result.append(replace(parameter, name=name))
        return result

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return super().get_config() | {
            "num_ids": self.num_ids,
            "features": [asdict(spec) for spec in self.features],
            "width": self.width,
            "ownership": self.ownership,
            "id_dropout": self.id_dropout,
        }
