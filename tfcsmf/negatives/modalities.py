"""Vectors of items, one kind per modality, and their alignment in one space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfcsmf.data.prepared import PreparedLog
from tfcsmf.errors import ConfigError, nearest

BEHAVIOUR, RANDOM = "behaviour", "random"
_TEMPERATURE = 0.1
_ALIGNMENT_BATCH = 512
_ALIGNMENT_RATE = 1e-2
# Of a user with more items this many are paired, or the pairs would be most of all.
_ITEMS_PER_USER = 200


def item_vectors(
    log: PreparedLog, modalities: tuple[str, ...] | None, dimension: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns the vectors of the catalogue by modality, NaN rows where missing.

    Args:
      log: its vector features of candidates are modalities; so is "behaviour".
      modalities: names; `None` takes all.
      dimension: of behaviour and random vectors.
      seed: of their decomposition, and of random vectors.

    Raises:
      ConfigError: for a name that is no modality.
    """
    features = [e.name for e in log.items.encoders if e.kind == "vector"]
    known = [*(name for name in features if name != BEHAVIOUR), BEHAVIOUR]
    found: dict[str, np.ndarray] = {}
    for name in known if modalities is None else modalities:
        if name == RANDOM:
            shape = (log.items.size, dimension)
            found[name] = np.random.default_rng(seed).normal(size=shape)
            found[name] = found[name].astype(np.float32)
            continue
        if name not in known:
            raise ConfigError(
                "loss.negatives.esans.clusters.modalities should name vector features "
                f"of candidates or {BEHAVIOUR!r}: {known}. Received: {name!r}."
                f"{nearest(name, known)}"
            )
        if name == BEHAVIOUR:
            found[name] = behaviour_vectors(log, dimension, seed)
            continue
        encoded = log.items.features[name]  # the last column says what is missing
        missing = encoded[:, -1:] > 0
        found[name] = np.where(missing, np.float32(np.nan), encoded[:, :-1])
    return found


def behaviour_vectors(log: PreparedLog, dimension: int, seed: int) -> np.ndarray:
    """Returns vectors of items that the same users met, float32 [C, dimension].

    They factorise the positive pointwise mutual information of two items in one
    user's training events, of all objectives: max(0, log(p(i, j) / (p(i) p(j)))).

    Args:
      log: its training examples are used, and nothing of validation or test.
      dimension: less where the catalogue is smaller.
      seed: of the randomised decomposition, and of which items of very active users
        count.

    Returns:
      NaN rows for items that share no user with another.

    References:
      Levy and Goldberg, Neural word embedding as implicit matrix factorization,
      NeurIPS '14.
    """
    # Imported here: it takes a second, and most runs have no clusters.
    import scipy.sparse
    from sklearn.utils.extmath import randomized_svd

    pairs = [examples.pairs for examples in log.train.values()]
    keys = np.concatenate(
        [p.users.astype(np.int64) * log.items.size + p.items for p in pairs]
    )
    keys = np.random.default_rng(seed).permutation(np.unique(keys))
    users, items = np.divmod(keys, log.items.size)
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    starts = np.searchsorted(users, users)
    few = np.arange(len(users)) - starts < _ITEMS_PER_USER
    shape = (log.users.size, log.items.size)
    ones = np.ones(int(few.sum()), np.float32)
    met = scipy.sparse.csr_matrix((ones, (users[few], items[few])), shape=shape)
    together = (met.T @ met).tocoo()
    apart = together.row != together.col
    rows, columns = together.row[apart], together.col[apart]
    counts = together.data[apart].astype(np.float64)
    sums = np.bincount(rows, counts, minlength=log.items.size)
    information = np.log(counts * max(sums.sum(), 1.0) / (sums[rows] * sums[columns]))
    positive = information > 0
    matrix = scipy.sparse.csr_matrix(
        (information[positive], (rows[positive], columns[positive])),
        shape=(log.items.size, log.items.size),
    )
    rank = max(1, min(dimension, log.items.size - 1))
    left, values, _ = randomized_svd(matrix, rank, random_state=seed)
    vectors = (left * np.sqrt(values)).astype(np.float32)
    vectors[np.abs(vectors).sum(axis=1) < 1e-6] = np.nan
    return vectors


@dataclass(frozen=True)
class Projection:
    """Brings vectors of one modality into the common space.

    Attributes:
      mean: float32 [w].
      scale: float32 [w], inverse standard deviations.
      weight: float32 [w, dimension], or `None` where nothing is aligned.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray | None

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors of length 1, zeros for NaN rows."""
        values = (vectors - self.mean) * self.scale
        if self.weight is not None:
            values = values @ self.weight
        length = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.maximum(length, np.float32(1e-12))
        return np.nan_to_num(values, copy=False)


def align(
    vectors: Mapping[str, np.ndarray], dimension: int, steps: int, seed: int
) -> dict[str, Projection]:
    """Fits a linear projection per modality by contrastive learning.

    The two vectors of one item are pulled together and apart from those of other items
    (symmetric InfoNCE, every pair of modalities, items that have both): our reading.
    A single modality is only standardised.

    Args:
      vectors: float32 [C, w] by modality, NaN rows where missing.
      dimension: of the common space.
      steps: training steps, 512 items per pair of modalities in each.
      seed: of initial values and batches.
    """
    fitted: dict[str, Projection] = {}
    for name, values in vectors.items():
        present = values[np.isfinite(values[:, 0])]
        deviation = present.std(axis=0) if len(present) else np.ones(values.shape[1])
        mean = present.mean(axis=0) if len(present) else np.zeros(values.shape[1])
        # A common scale where a column is constant.
        scale = 1.0 / np.maximum(deviation, 1e-6 + 1e-3 * deviation.max())
        fitted[name] = Projection(
            mean.astype(np.float32), scale.astype(np.float32), None
        )
    if len(vectors) == 1:
        return fitted
    names = list(vectors)
    inputs = {
        name: tf.constant(np.nan_to_num((vectors[name] - p.mean) * p.scale))
        for name, p in fitted.items()
    }
    present = {name: np.isfinite(vectors[name][:, 0]) for name in names}
    both = {
        pair: tf.constant(np.flatnonzero(present[pair[0]] & present[pair[1]]))
        for pair in itertools.combinations(names, 2)
        if np.sum(present[pair[0]] & present[pair[1]]) > 1
    }
    weights = _train(inputs, both, dimension, steps, seed)
    return {
        name: Projection(p.mean, p.scale, weights[name]) for name, p in fitted.items()
    }


def _train(
    inputs: Mapping[str, tf.Tensor],
    both: Mapping[tuple[str, str], tf.Tensor],
    dimension: int,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    weights = {
        name: tf.Variable(
            tf.random.stateless_normal([values.shape[1], dimension], [seed, number])
            / np.sqrt(values.shape[1])
        )
        for number, (name, values) in enumerate(inputs.items())
    }
    optimizer = tf.keras.optimizers.Adam(_ALIGNMENT_RATE)
    variables = list(weights.values())

    @tf.function
    def step(number: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.constant(0.0)
            for order, ((one, other), items) in enumerate(both.items()):
                places = tf.random.stateless_uniform(
                    [min(_ALIGNMENT_BATCH, items.shape[0])],
                    tf.stack([seed + 1 + order, number]),
                    maxval=items.shape[0],
                    dtype=tf.int32,
                )
                chosen = tf.gather(items, places)
                vectors = (
                    tf.gather(inputs[name], chosen) @ weights[name]
                    for name in (one, other)
                )
                loss += _info_nce(*vectors, items=chosen)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )

    if both:
        for number in range(steps):
            step(tf.constant(number))
    return {name: weight.numpy() for name, weight in weights.items()}


def _info_nce(one: tf.Tensor, other: tf.Tensor, *, items: tf.Tensor) -> tf.Tensor:
    scores = tf.matmul(
        tf.math.l2_normalize(one, 1), tf.math.l2_normalize(other, 1), transpose_b=True
    )
    scores /= _TEMPERATURE
    # An item drawn twice is no negative of itself.
    same = tf.equal(items[:, tf.newaxis], items) & ~tf.eye(len(items), dtype=tf.bool)
    scores = tf.where(same, -1e9, scores)
    own = tf.linalg.diag_part(scores)
    both_ways = tf.reduce_logsumexp(scores, axis=0) + tf.reduce_logsumexp(scores, 1)
    return tf.reduce_mean(both_ways / 2.0 - own)
