"""Tables in shards of rows, which other processes may hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

# Job of the processes that hold shards, in `TF_CONFIG` and in names of devices.
TABLE_JOB = "ps"


def is_remote(variable: tf.Variable) -> bool:
    """Returns whether another process holds a variable."""
    return bool(tf.DeviceSpec.from_string(variable.device).job == TABLE_JOB)


@tf.autograph.experimental.do_not_convert
@contextlib.contextmanager
def device_of(variable: tf.Variable) -> Iterator[None]:
    """Runs operations where a variable is, if another process holds it.

    Without it they run here, and a whole table would come over the network. Outside of
    compiled functions they are over when the block is: the other process does them in
    order, but functions do not wait for them.
    """
    if not is_remote(variable):
        yield
        return
    with tf.device(variable.device):
        yield
        if tf.executing_eagerly():
            tf.identity(tf.constant(0)).numpy()  # comes after all of them


def on_device(name: str | None) -> contextlib.AbstractContextManager[None]:
    """Runs operations on a device; with `None` where they would run anyway."""
    return contextlib.nullcontext() if name is None else tf.device(name)


def take_rows(shards: Sequence[tf.Variable], rows: tf.Tensor) -> tf.Tensor:
    """Looks rows up, each in its shard; what `tf.gather` does in one variable.

    Only the rows come from other processes. The gradient of a shard names its own
    rows, counted from its first one.

    Args:
      shards: of as many rows each, the last one of at most as many.
      rows: int [n].

    Returns:
      float [n, columns].

    Example:
      >>> shards = [tf.Variable([[0.0], [1.0]]), tf.Variable([[2.0]])]
      >>> take_rows(shards, tf.constant([2, 0, 2])).numpy().tolist()
      [[2.0], [0.0], [2.0]]
    """
    if len(shards) == 1:
        return tf.gather(shards[0], rows)
    size = shards[0].shape[0]
    places = tf.range(tf.size(rows))
    by_shard = tf.dynamic_partition(places, rows // size, len(shards))
    values = []
    for number, (shard, own) in enumerate(zip(shards, by_shard, strict=True)):
        local = tf.gather(rows, own) - number * size
        with device_of(shard):
            values.append(tf.gather(shard, local))
    stitched = tf.dynamic_stitch(by_shard, values)
    return tf.ensure_shape(stitched, [rows.shape[0], shards[0].shape[1]])


class ShardedNormal(tf.keras.initializers.RandomNormal):
    """Draws shards of rows, the same numbers as `RandomNormal` draws for all rows.

    Args:
      columns: of the table.
      stddev: standard deviation.
    """

    def __init__(self, columns: int, stddev: float) -> None:
        super().__init__(stddev=stddev)
        self._columns = columns
        seed = tf.constant(self._random_generator.make_seed_for_stateless_op())
        self._start = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
        self._algorithm = tf.raw_ops.StatelessRandomGetAlg()

    def rows(self, first: int, last: int) -> tf.Tensor:
        """Returns rows `first` to `last` (exclusive); `first` is a multiple of 4."""
        # The generator makes 4 numbers per count.
        skipped = tf.constant([first * self._columns // 4, 0], tf.uint64)
        drawn = tf.raw_ops.StatelessRandomNormalV2(
            shape=[last - first, self._columns],
            key=self._start.key,
            counter=self._start.counter + skipped,
            alg=self._algorithm,
            dtype=tf.float32,
        )
        return drawn * self.stddev + self.mean
