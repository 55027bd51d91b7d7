"""Training batches from a log on disk, of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.data.batch_rows import Batch
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID, EntityInputs, QueryInputs
from tfcsmf.data.prepared import Csr, Histories
from tfcsmf.data.query_rows import QueryRows, TargetChooser, expected_targets
from tfcsmf.data.sharded.block import dtype_of
from tfcsmf.data.sharded.folder import TOGETHER, PreparedFolder
from tfcsmf.errors import ConfigError
from tfcsmf.negatives.sampler import PoolSampler

Tensors = dict[str, tf.Tensor]

# As in `StageBatches`: purposes of generators.
_SHUFFLE = 0
_READERS = 4  # files that are read at the same time


class StoredBatches(StageBatches):
    """Batches of one objective's examples, as `StageBatches` has them, from shards.

    Every epoch reads the shards in another order, some of them together as a pool,
    from which rows are drawn without replacement. While batches are made from one pool
    the next one is read. In memory are two pools, and the tables of users and items.

    As in memory a batch is a function of (seed, objective, step), and to continue at a
    step only its pool and those after it are read. Where all shards are one pool, batch
    by batch they are those of the log in memory (hard negatives are other draws).

    Args:
      folder: the log.
      objective: whose examples are the positives.
      settings: see `BatchSettings`; samplers with negatives of earlier batches need the
        log in memory.
      weights: of a pair of each objective, as in `joint_lessons`, if their rows are
        trained beside the first one's; else those of `objective` are all.
      first_labels: as in `StageBatches`.
      together: shards of a pool, >= 1; more where an objective has few rows.

    Raises:
      ConfigError: for a sampler that needs the log in memory.
    """

    def __init__(
        self,
        folder: PreparedFolder,
        objective: str,
        settings: BatchSettings,
        weights: Sequence[float] | None = None,
        first_labels: Mapping[str, int] | None = None,
        together: int = TOGETHER,
    ) -> None:
        code = folder.objectives.index(objective)
        self.level = code
        self.settings = settings
        self.num_items = folder.items.size
        self.num_users = folder.users.size
        self._folder = folder
        self._files = np.array(folder.train_files())
        # Whose rows there are, their label being the place here.
        self._codes = [code] if weights is None else list(range(len(weights)))
        self._first_labels = dict(first_labels or {})
        self._rows = np.sum([folder.rows(c) for c in self._codes], axis=0)
        self._together = together
        self.batch_size = int(min(settings.batch_size, self._rows.sum()))
        counts = [folder.item_counts("targets", c) for c in self._codes]
        targets = np.sum(counts, axis=0)
        self._trained = max(folder.items.trained, int(np.flatnonzero(targets)[-1]) + 1)
        self.has_whole_catalogue = (
            settings.sampler is None and self._trained <= settings.whole_catalogue
        )
        self.sampler = settings.sampler or PoolSampler(
            settings.uniform_negatives, self.num_items
        )
        if self.sampler.memory:
            raise ConfigError(
                "Negatives of earlier batches need the positives of all users in "
                "memory, which a prepared folder does not have. Received: a sampler "
                f"with {self.sampler.memory} of them (cross_batch). Choose another "
                "loss.negatives.sampler, or read the log itself (--events)."
            )
        sizes = [self._examples(c) for c in self._codes]
        self.num_examples = sizes[0]
        self._label_weights: np.ndarray | None = None
        if weights is not None:
            mean = np.dot(sizes, weights) / np.sum(sizes)
            self._label_weights = (np.asarray(weights) / mean).astype(np.float32)
        hard = folder.item_counts("hard", code) if code else np.zeros(1, np.int64)
        hard_share = hard / hard.sum() if hard.sum() else None
        self.hard_negatives = settings.hard_negatives if hard.sum() else 0
        self._hard = None
        self._hard_ends = tf.constant(np.cumsum(hard))
        self._known_keys = None
        self._users_table = EntityInputs(folder.users, QUERY_ID)
        self._candidates = EntityInputs(folder.items, CANDIDATE_ID)
        self.probability = None
        if not self.has_whole_catalogue:
            lengths = [np.array(folder.tree["row_lengths"][c]) for c in self._codes]
            row_sizes, numbers = np.concatenate(lengths).T
            per_row = expected_targets(
                row_sizes, settings.target_share, folder.timed, numbers
            )
            share = (targets / targets.sum()).astype(np.float32)
            self.probability = self._probability(
                per_row, share, hard_share if self.hard_negatives else None
            )

    def _examples(self, code: int) -> int:
        """Returns the examples of an objective, repeated ones included."""
        if code == 0 and self._folder.with_later:
            return int(self._folder.tree["later"][0])
        return int(self._folder.item_counts("examples", code).sum())

    def _draw_hard(self, seed: tf.Tensor) -> tf.Tensor:
        ends = self._hard_ends
        draws = tf.random.stateless_uniform(
            [self.hard_negatives], seed, maxval=ends[-1], dtype=tf.int64
        )
        return tf.searchsorted(ends, draws, side="right")

    def subset(self, share: float) -> np.ndarray:
        """Returns the numbers of a fixed random subset of the shards, int64 [m]."""
        size = len(self._files)
        if share >= 1.0:
            return np.arange(size)
        order = np.random.default_rng([self.settings.seed, self.level]).permutation(
            size
        )
        enough = np.cumsum(self._rows[order]) >= max(
            share * self._rows.sum(), self.batch_size
        )
        return np.sort(order[: int(enough.argmax()) + 1])

    def steps_per_epoch(self, share: float = 1.0) -> int:
        """Returns the batches of an epoch, whatever the order of the shards."""
        return self._pace(share)[1]

    def _pace(self, share: float) -> tuple[int, int]:
        """Returns shards of a pool, and steps that an epoch has at least."""
        rows = self._rows[self.subset(share)]
        together = min(self._together, len(rows))
        while True:
            # What is left over of a pool waits for the next epoch.
            pools = -(-len(rows) // together)
            least = int(rows.sum()) - pools * (self.batch_size - 1)
            steps = -(-least // self.batch_size)
            if steps >= 1 or together == len(rows):
                return together, max(steps, 1)
            together = min(2 * together, len(rows))

    def dataset(
        self, share: float, phase: int, first_step: int, last_step: int
    ) -> tf.data.Dataset:
        """See `StageBatches.dataset`."""
        per_epoch = self._pace(share)[1]
        first, last = first_step // per_epoch, -(-last_step // per_epoch)
        # Endless by one epoch: the last one has as many steps as the others.
        epochs = tf.data.Dataset.range(first, last + 1)
        pools = epochs.flat_map(self._pools(share, phase, first_step))

        def batches(
            pool: Tensors, begin: tf.Tensor, end: tf.Tensor, number: tf.Tensor
        ) -> tf.data.Dataset:
            def make(step: tf.Tensor) -> Batch:
                return self._from_pool(pool, step - begin, step, number, phase)

            return tf.data.Dataset.range(tf.maximum(begin, first_step), end).map(
                make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
            )

        # While one pool is used the next one is made, of the next epoch if need be.
        stream = pools.prefetch(1).flat_map(batches)
        return stream.take(last_step - first_step).prefetch(4)

    def _pools(
        self, share: float, phase: int, first_step: int
    ) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """Returns a function: epoch -> its pools that have steps from one on.

        Beside each pool are its first step, its last one (exclusive), and its number.
        """
        chosen = self.subset(share)
        files = tf.constant(self._files[chosen])
        rows = tf.constant(self._rows[chosen])
        together, per_epoch = self._pace(share)
        size = len(chosen)
        count = -(-size // together)

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            seed = self._seeds(number, phase)(_SHUFFLE)
            order = tf.random.experimental.index_shuffle(
                tf.range(size, dtype=tf.int64), seed, tf.constant(size - 1, tf.int64)
            )
            pool_rows = tf.math.segment_sum(
                tf.gather(rows, order), tf.range(size, dtype=tf.int64) // together
            )
            steps = pool_rows // self.batch_size
            begins = tf.cumsum(steps, exclusive=True) + number * per_epoch
            ends = tf.minimum(begins + steps, (number + 1) * per_epoch)
            numbers = number * count + tf.range(count, dtype=tf.int64)
            over = tf.reduce_sum(tf.cast(ends <= first_step, tf.int64))
            blocks = (
                tf.data.Dataset.from_tensor_slices(
                    tf.gather(files, order)[over * together :]
                )
                .interleave(
                    tf.data.TFRecordDataset,
                    cycle_length=_READERS,
                    num_parallel_calls=_READERS,
                    deterministic=True,
                )
                .map(self._parse, num_parallel_calls=_READERS, deterministic=True)
                .ragged_batch(together)
            )
            counts = tf.data.Dataset.from_tensor_slices((begins, ends, numbers))
            return tf.data.Dataset.zip((blocks, counts.skip(over))).map(
                lambda block, numbers: (self._pool(block), *numbers)
            )

        return epoch

    def _histories(self) -> dict[str, int]:
        """Events whose histories are given, with their numbers."""
        events = self.settings.histories
        return {
            event: number
            for number, event in enumerate(self._folder.history_events)
            if events is None or event in events
        }

    def _parse(self, record: tf.Tensor) -> Tensors:
        """Reads the arrays of a shard that are needed."""
        names = ["users"]
        for code in self._codes:
            names += [f"known/{code}/lengths", f"known/{code}/items"]
            columns = ("users", "ends", "lengths", "items")
            names += [f"rows/{code}/{key}" for key in columns]
        keys = ["lengths", "items", *(["times"] if self._folder.tree["times"] else [])]
        for number in self._histories().values():
            names += [f"history/{number}/{key}" for key in keys]
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
        parsed = tf.io.parse_single_example(record, features)
        return {
            name: tf.io.decode_raw(data, tf.as_dtype(dtype_of(name)))
            for name, data in parsed.items()
        }

    def _pool(self, blocks: dict[str, tf.RaggedTensor]) -> Tensors:
        """Puts shards together: users count from 0, ends are absolute."""

        def of_all(name: str) -> tf.Tensor:
            """Returns an array of every label, one after the other."""
            values = [blocks[name.format(code)].values for code in self._codes]
            return tf.concat(values, axis=0)

        sizes = blocks["users"].row_lengths()
        before = tf.cast(tf.cumsum(sizes, exclusive=True), tf.int32)
        parts_of_users, labels = [], []
        for label, code in enumerate(self._codes):
            rows = blocks[f"rows/{code}/users"]
            shift = tf.repeat(before, rows.row_lengths())
            parts_of_users.append(rows.values + shift)
            labels.append(tf.fill(tf.shape(rows.values), label))
        users, labels = tf.concat(parts_of_users, 0), tf.concat(labels, 0)
        columns = len(self._folder.history_events)
        ends = tf.reshape(of_all("rows/{}/ends"), [-1, columns])
        parts = tf.unstack(tf.cast(ends, tf.int64), num=columns, axis=1)
        pool: Tensors = {}
        for number in self._histories().values():
            offsets = _offsets(blocks[f"history/{number}/lengths"].values)
            parts[number] += tf.gather(offsets, users)
            pool[f"history/{number}/offsets"] = offsets
            for key in ("items", "times"):
                name = f"history/{number}/{key}"
                if name in blocks:
                    # Something to gather even if all lists are empty.
                    pool[name] = tf.pad(blocks[name].values, [[0, 1]])
        positions = blocks["users"].values
        inputs = self._users_table(positions)
        known = of_all("known/{}/items")
        lists = of_all("known/{}/lengths")
        lengths = of_all("rows/{}/lengths")
        if self._label_weights is not None:
            own = tf.gather(self._label_weights, labels)
            pool["weights"] = tf.repeat(own, lengths)
        if self.sampler.own_draws:
            owners = tf.repeat(tf.range(tf.size(lists, tf.int64)), lists)
            keys = owners * self.num_items + tf.cast(known, tf.int64)
            pool["known/keys"] = tf.concat([keys, [tf.int64.max]], axis=0)
        return pool | {
            # Rows by user, as in memory, whatever shards these are from.
            "order": tf.argsort(tf.gather(positions, users), stable=True),
            "users": users,
            "ends": tf.stack(parts, axis=1) if parts else tf.cast(ends, tf.int64),
            "labels": labels,
            "offsets": _offsets(lengths),
            "items": of_all("rows/{}/items"),
            "known/offsets": _offsets(lists),
            "known/items": tf.pad(known, [[0, 1]]),
            **{f"input/{name}": column for name, column in inputs.items()},
        }

    def _from_pool(
        self,
        pool: Tensors,
        number: tf.Tensor,
        step: tf.Tensor,
        pool_number: tf.Tensor,
        phase: int,
    ) -> Batch:
        """Makes batch `number` of a pool, which is that of a step."""
        stateless = self._seeds(step, phase)
        slots = number * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        last = tf.size(pool["users"], out_type=tf.int64) - 1
        places = tf.random.experimental.index_shuffle(
            slots, stateless(_SHUFFLE, pool_number), last
        )
        rows = tf.gather(pool["order"], places)
        return self._of_pool(pool)._assemble(rows, stateless)

    def _of_pool(self, pool: Tensors) -> StoredBatches:
        """Returns these batches with the rows of a pool in place of a log's."""
        batches = copy.copy(self)
        rows = QueryRows(
            pool["users"],
            pool["ends"],
            pool["labels"],
            pool["offsets"],
            pool["items"],
            self._folder.timed,
        )
        events = self._histories()
        nothing: Any = None  # of histories that are not given
        lists = {
            event: Csr(
                pool[f"history/{number}/offsets"], pool[f"history/{number}/items"]
            )
            if event in events
            else Csr(nothing, nothing)
            for number, event in enumerate(self._folder.history_events)
        }
        times = None
        if self._folder.tree["times"]:
            times = {event: pool[f"history/{n}/times"] for event, n in events.items()}
        inputs = {
            name.removeprefix("input/"): column
            for name, column in pool.items()
            if name.startswith("input/")
        }
        batches._users = rows.users
        batches._items, batches._weights = rows.items, pool.get("weights")
        batches._known_keys = pool.get("known/keys")
        batches._labels = rows.labels
        # Lists of known positives are those of every label for all users of the pool.
        lists_of_all = tf.size(pool["known/offsets"]) - 1
        batches.num_users = lists_of_all // len(self._codes)
        batches._history_end = rows.history_end
        batches.known = (pool["known/offsets"], pool["known/items"])
        batches._targets = TargetChooser(
            rows,
            self.settings.target_share,
            self.settings.visible_share,
            tuple(self._folder.objectives[code] for code in self._codes),
            tuple(self._folder.objectives),
        )
        batches._queries = QueryInputs(
            EntityInputs.of_columns(inputs),
            Histories(lists, None, times),
            self.settings.history_length,
            tuple(events),
        )
        return batches


def _offsets(lengths: tf.Tensor) -> tf.Tensor:
    return tf.pad(tf.cumsum(tf.cast(lengths, tf.int64)), [[1, 0]])
