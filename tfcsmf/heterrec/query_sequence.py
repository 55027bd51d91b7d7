"""A sequence encoder as one more encoding of the cascade's query tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.inputs import EntityInputs
from tfcsmf.data.merged_lists import Lists, MergedLists, last_entries, merge_lists
from tfcsmf.data.rows import NUM_RESERVED, PADDING
from tfcsmf.heterrec.encoder import HierarchicalEncoder, History
from tfcsmf.heterrec.layers import OwnedLayer
from tfcsmf.heterrec.recurrent import RecurrentEncoder
from tfcsmf.towers import CLOSED, FREE, MaskedDense, MaskedEmbedding, RowBlock, Tower
from tfcsmf.towers.ownership import new_owner


class QuerySequence(OwnedLayer):
    """Encodes all histories of a query as one sequence of items with tokens.

    The lists a pass may see are merged (`merge_lists`), the last `length` entries are
    encoded, and the output at the last place is the encoding; a query without history
    has zeros. Tokens are projections of what the candidate tower knows of an item, its
    id and its features: the tables are the candidate tower's own.

    Args:
      tower: the candidate tower.
      items: inputs of the catalogue, by position.
      encoder: reads the sequences.
      histories: names of the lists, in order; event types go by it.
      length: last entries that are read.
      with_features: a token per feature; else of the id alone.
      with_times: order by time, with gaps; else list by list.

    Attributes:
      history_owner: int8 [histories], the first stage whose pass sees each of them;
        `CLOSED` where none does yet.

    Call arguments: `inputs`, rows of each history that is given, ragged or padded int
    [n, any], and their times under `<history>/time`; `stage`, `seed` and `block` (of
    the candidate's ids) as in `Tower`.
    Returns float [n, width].

    References:
      HeterRec, arXiv 2503.01469; its place in a cascade is our reading.
    """

    def __init__(
        self,
        tower: Tower,
        items: EntityInputs,
        encoder: HierarchicalEncoder | RecurrentEncoder,
        histories: Sequence[str],
        length: int,
        with_features: bool = True,
        with_times: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.histories = tuple(histories)
        self.length = length
        recurrent = isinstance(encoder, RecurrentEncoder)
        self.width = encoder.width if recurrent else encoder.block_settings.width
        self.with_features = with_features
        self.with_times = with_times
        # Not its own; a closure hides both from Keras' tracking.
        self._shared: Callable[[], tuple[Tower, EntityInputs]] = lambda: (tower, items)
        count = 1 + (len(tower.features) if with_features else 0)
        self.projections = [
            MaskedDense(self.width, use_bias=False, name=f"token_{index}")
            for index in range(count)
        ]
        self.history_owner = new_owner("history_owner", (len(self.histories),))
        self.history_owner.assign(np.zeros(len(self.histories), np.int8))

    @property
    def shared(self) -> tuple[Tower, EntityInputs]:
        """The candidate tower and the inputs of the catalogue."""
        return self._shared()

    def parts(self) -> list[tuple[Any, int]]:
        """See `OwnedLayer`."""
        sizes = self.shared[0].encoding_sizes[: len(self.projections)]
        projections = list(zip(self.projections, sizes, strict=True))
        return [*projections, (self.encoder, self.width)]

    def call(
        self,
        inputs: Mapping[str, Lists],
        stage: int | None = None,
        seed: tf.Tensor | None = None,
        block: RowBlock | None = None,
    ) -> tf.Tensor:
        """Encodes a batch; see the class."""
        merged = self._merged(inputs, stage)
        numbers, places = tf.unique(tf.reshape(merged.rows, [-1]))
        tokens = self._tokens(numbers, stage, block)
        return encode_last(self.encoder, tokens, places, merged, stage, seed)

    def _merged(self, inputs: Mapping[str, Lists], stage: int | None) -> MergedLists:
        """Merges the lists that a pass sees."""
        owner = tf.convert_to_tensor(self.history_owner)
        seen = owner != CLOSED if stage is None else owner <= stage
        sample = next(iter(inputs.values()))
        ragged = isinstance(sample, tf.RaggedTensor)
        rows = sample.nrows() if ragged else tf.shape(sample, tf.int64)[0]
        lists, times = [], []
        for number, name in enumerate(self.histories):
            part = inputs.get(name, tf.zeros([rows, 0], tf.int32))
            part = last_entries(part, self.length)
            lists.append(tf.where(seen[number], part, PADDING))
            if self.with_times:
                none = tf.zeros(tf.shape(part), tf.int64)
                own = inputs.get(f"{name}/time", none)
                times.append(last_entries(own, self.length))
        return merge_lists(lists, self.length, times or None)

    def _tokens(
        self, numbers: tf.Tensor, stage: int | None, block: RowBlock | None
    ) -> tf.Tensor:
        """Returns the tokens of items, float [m, M, width]."""
        tower, items = self.shared
        values = [tower.id_table(numbers, stage, block)]
        if self.with_features:
            rows = numbers if block is None else tf.gather(block.rows, numbers)
            features = items(tf.maximum(rows - NUM_RESERVED, 0))
            values += tower.encode_features(features, stage)
        projected = [
            layer(value, stage)
            for layer, value in zip(self.projections, values, strict=True)
        ]
        return tf.stack(projected, axis=1)

    def close(self, names: Sequence[str], keep: bool = False) -> None:
        """Hides histories from all passes until they are opened.

        Args:
          names: of the histories.
          keep: leave the rows of their events as they are; else they are zero.
        """
        owner = self.history_owner.numpy()
        owner[[self.histories.index(name) for name in names]] = CLOSED
        self.history_owner.assign(owner)
        self._own_events(names, FREE, CLOSED, keep=keep)

    def open(self, name: str, stage: int, seed: int) -> None:
        """Shows a closed history to a stage and those after it."""
        owner = self.history_owner.numpy()
        number = self.histories.index(name)
        if owner[number] != CLOSED:
            return  # opened before, or trained with all
        owner[number] = stage
        self.history_owner.assign(owner)
        self._own_events([name], CLOSED, FREE, seed, keep=True)

    def _own_events(
        self,
        names: Sequence[str],
        before: int,
        after: int,
        seed: int | None = None,
        keep: bool = False,
    ) -> None:
        """Gives rows of the event table to another owner.

        They get draws, with a seed, or zeros; with `keep` only if they are all zero.
        """
        table: MaskedEmbedding | None = getattr(self.encoder, "event_table", None)
        if table is None:
            return
        value, owner = table.table.numpy(), table.table_owner.numpy()
        rows = [NUM_RESERVED + self.histories.index(name) for name in names]
        moved = np.zeros(owner.shape, bool)
        moved[rows] = owner[rows] == before
        drawn = np.zeros(value.shape, np.float32)
        if seed is not None:
            rng = np.random.default_rng([seed, rows[0]])
            drawn = rng.normal(0.0, table.scale, value.shape).astype(np.float32)
        if keep and value[rows].any():
            drawn = value
        table.table.assign(np.where(moved, drawn, value))
        table.table_owner.assign(np.where(moved, np.int8(after), owner))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, without what is shared."""
        return super().get_config() | {
            "histories": list(self.histories),
            "length": self.length,
            "with_features": self.with_features,
            "with_times": self.with_times,
        }


def encode_last(
    encoder: HierarchicalEncoder | RecurrentEncoder,
    tokens: tf.Tensor,
    places: tf.Tensor,
    merged: MergedLists,
    stage: int | None = None,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the output at the last place of every sequence, float [n, width].

    Args:
      encoder: reads the sequences.
      tokens: of distinct items, float [m, M, width].
      places: int [n * width of the sequences], which of them stands where.
      merged: the sequences.
      stage: see `OwnedLayer`.
      seed: see `OwnedLayer`.
    """
    shape = tf.shape(merged.rows)
    history = History(
        tf.gather(tokens, tf.reshape(places, shape)),
        merged.mask,
        merged.events,
        merged.gaps,
    )
    return encoder(history, stage, seed).items[:, -1]
