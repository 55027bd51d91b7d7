"""LMP: which places predict which steps ahead, how often they count, and the loss."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tfcsmf.losses import chunked_softmax


@dataclass(frozen=True)
class StepTargets:
    """What places predict one number of steps ahead; see `step_targets`.

    Attributes:
      places: int [rows, 2], (sequence, column) of what predicts.
      positives: int32 [rows], the items predicted.
      weights: float [rows], how often each counts.
      pairs: int32 [m, 2], (row, item) that are no negatives, sorted by row.
    """

    places: tf.Tensor
    positives: tf.Tensor
    weights: tf.Tensor
    pairs: tf.Tensor


def step_targets(
    items: tf.Tensor,
    lengths: tf.Tensor,
    step: int,
    steps: int,
    window: int,
    complete: bool = False,
) -> StepTargets:
    """Finds all predictions of the item `step` places ahead in a batch.

    Args:
      items: int32 [batch, n], left-padded; the last is only a target.
      lengths: int [batch], items of every sequence, the last included.
      step: from 1 to `steps`.
      steps: K.
      window: L.
      complete: windows hold only places with all K steps after them, as in our
        reading of the paper. Otherwise step k has windows of its own, of the places
        with k items after them, so that the last items are predicted from nearby too:
        short sequences have hardly a complete window.

    Example:
      >>> targets = step_targets(tf.constant([[0, 7, 8]]), tf.constant([2]), 1, 1, 1)
      >>> targets.places.numpy().tolist(), targets.positives.numpy().tolist()
      ([[0, 1]], [8])
    """
    width = tf.shape(items)[1] - 1
    needed = steps if complete else step
    weights = position_weights(lengths - 1, width, needed, window)
    places = tf.cast(tf.where(weights > 0), tf.int32)
    return StepTargets(
        places,
        tf.gather_nd(items, places + [0, step]),
        tf.gather_nd(weights, places),
        window_pairs(items, lengths, places, steps, window),
    )


def step_loss(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    targets: StepTargets,
    columns: tf.Tensor | None = None,
    column_bias: tf.Tensor | None = None,
    present: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the weighted mean of the InfoNCE losses of one step's predictions.

    Args:
      queries: float [rows, d], a head's outputs at `targets.places`.
      candidates: float [c, d], every one once.
      targets: see `step_targets`.
      columns: int32 [items], the candidate that stands for each item; by default item
        and candidate numbers are the same.
      column_bias: float [c], added to the scores of negatives: minus the logarithm of
        the chance that each is among the candidates.
      present: bool [items]; others are never predicted, such as missing features.
    """
    weights, positives, pairs = targets.weights, targets.positives, targets.pairs
    if present is not None:
        weights = tf.where(tf.gather(present, positives), weights, 0.0)
    if columns is not None:
        own, other = tf.unstack(pairs, axis=1)
        pairs = tf.stack([own, tf.gather(columns, other)], axis=1)
        positives = tf.gather(columns, positives)
    total = chunked_softmax(
        queries,
        candidates,
        column_bias=column_bias,
        sample_weight=weights,
        excluded_pairs=pairs,
        positives=tf.stack([tf.range(tf.shape(positives)[0]), positives], axis=1),
    )
    return tf.math.divide_no_nan(total, tf.reduce_sum(weights))


def distinct_values(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lists every value of a feature once.

    Items with the same value have the same vector in that feature's tower: as
    candidates they would be each other's false negatives.

    Args:
      values: int [items], equal where the feature is.

    Returns:
      The first item of every value, int32 [c], and the number of every item's value,
      int32 [items].

    Example:
      >>> first, columns = distinct_values(tf.constant([7, 5, 7]))
      >>> first.numpy().tolist(), columns.numpy().tolist()
      ([0, 1], [0, 1, 0])
    """
    distinct, columns = tf.unique(values)
    items = tf.range(tf.size(values))
    return tf.math.unsorted_segment_min(items, columns, tf.size(distinct)), columns


def position_weights(
    lengths: tf.Tensor, width: tf.Tensor | int, steps: int, window: int
) -> tf.Tensor:
    """Returns how many windows hold each place of left-padded sequences.

    A window is `window` consecutive places that all have `steps` items after them. In
    a sequence of T places (its last item is only a target) place t, counted from 1,
    is in

        min(t, L, W, T - K + 2 - t),   W = T - L - K + 2

    windows. A sequence that is too short for one takes the longest window it has.

    Args:
      lengths: int [batch], T of every sequence: its items without the last.
      width: padded number of places; those of a sequence are the last T.
      steps: K >= 1.
      window: L >= 1.

    Returns:
      float [batch, width]; 0 for padding and for places with fewer than `steps` items
      after them. With `window` 1 every other place counts once.

    Example:
      >>> position_weights(tf.constant([6, 2]), 6, steps=2, window=3).numpy().tolist()
      [[1.0, 2.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]]

    References:
      HeterRec, arXiv 2503.01469, listwise multi-step prediction; the count is our
      reading of its sliding windows.
    """
    lengths = lengths[:, tf.newaxis]
    place = tf.range(width)[tf.newaxis, :] - (width - lengths) + 1  # from 1
    usable = lengths - steps + 1  # places with `steps` items after them
    size = tf.minimum(window, usable)
    count = tf.minimum(
        tf.minimum(place, size),
        tf.minimum(usable - size + 1, usable + 1 - place),
    )
    return tf.cast(tf.maximum(count, 0), tf.float32)


def window_pairs(
    items: tf.Tensor, lengths: tf.Tensor, places: tf.Tensor, steps: int, window: int
) -> tf.Tensor:
    """Finds the items that share a window with a place: no negatives of its row.

    Those are the targets of all windows that hold the place: the items from L - 2
    before it to L + K - 1 after it.

    Args:
      items: int [batch, n], left-padded, the last target included.
      lengths: int [batch], items of every sequence, the last target included.
      places: int [rows, 2] of (sequence, column), columns of `items`.
      steps: K.
      window: L.

    Returns:
      int32 [m, 2] of (row, item), sorted by row; an item may occur twice.

    Example:
      >>> items, lengths = tf.constant([[0, 7, 8, 9]]), tf.constant([3])
      >>> window_pairs(items, lengths, tf.constant([[0, 1]]), 2, 1).numpy().tolist()
      [[0, 8], [0, 9]]
    """
    width = tf.shape(items)[1]
    sequence, column = places[:, :1], places[:, 1:]
    columns = column + tf.range(2 - window, window + steps)[tf.newaxis, :]
    first = width - tf.gather(lengths, sequence)
    real = (columns >= first) & (columns < width)
    inside = tf.clip_by_value(columns, 0, width - 1)
    chosen = tf.gather(tf.gather(items, sequence[:, 0]), inside, batch_dims=1)
    rows = tf.broadcast_to(
        tf.range(tf.shape(places)[0])[:, tf.newaxis], tf.shape(chosen)
    )
    pairs = tf.stack([rows, tf.cast(chosen, tf.int32)], axis=2)
    return tf.boolean_mask(pairs, real)
