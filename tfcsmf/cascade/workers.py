"""The processes that train one model together, and what they tell each other.

Every worker holds the whole model and makes the same global batches. It computes the
gradient of some of a batch's rows; the sum over the workers is what all of them apply
(`tfcsmf.data.batch_parts`). Variables, batches and optimizers are those of a single
process: of `tf.distribute` only the collectives are used. The first worker, the chief,
decides what is decided by measuring, and is the only one that writes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfcsmf.cascade.packed_gradients import pack_gradient
from tfcsmf.errors import ConfigError, WorkerError

Arrays = dict[str, np.ndarray]

ANY = 1 << 31  # processes of a job
_CHUNK = 1 << 22  # numbers sent at once, 16 MB
_READY, _DONE, _FAILED = range(3)
# What TensorFlow raises where another process has gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class Workers:
    """The cluster of `TF_CONFIG`, seen from one of its processes.

    To be made before TensorFlow runs anything, because its runtime then becomes a
    server of the cluster; waits until every worker has started.

    Args:
      number: of this worker; 0 is the chief.
      count: of workers.

    Raises:
      ConfigError: if a worker would use several accelerators.
    """

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.count = count
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=tf.distribute.experimental.CommunicationImplementation.RING
            if not tf.config.list_physical_devices("GPU")
            else tf.distribute.experimental.CommunicationImplementation.AUTO
        )
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=options
        )
        if self._strategy.num_replicas_in_sync != count:
            raise ConfigError(
                "Every worker should use one device. Received: "
                f"{self._strategy.num_replicas_in_sync} devices of {count} workers. "
                "Start a worker per accelerator, each with its own "
                "CUDA_VISIBLE_DEVICES."
            )
        self._total = tf.function(
            self._sum, input_signature=[tf.TensorSpec([None], tf.int32)]
        )
        self._met = False

    @property
    def is_chief(self) -> bool:
        """Whether this worker decides and writes."""
        return self.number == 0

    # In a compiled step.

    def part(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns this worker's rows of a batch, see `tfcsmf.data.batch_parts`."""
        first = rows * self.number // self.count
        last = rows * (self.number + 1) // self.count
        return tf.stack([first, last, rows])

    def add_up(
        self,
        loss: tf.Tensor,
        gradients: Sequence[Any],
        variables: Sequence[tf.Variable],
        same_rows: Iterable[tf.Variable] = (),
    ) -> tuple[tf.Tensor, list[Any]]:
        """Returns the sums over all workers of a loss and of gradients.

        Args:
          loss: of this worker's rows.
          gradients: see `pack_gradient`.
          variables: the parameters.
          same_rows: those whose sparse gradient names the same rows in the same order
            on all workers.
        """
        same = {variable.ref() for variable in same_rows}
        packed = [
            pack_gradient(gradient, variable, variable.ref() in same)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        sent = (loss, [part.added for part in packed])
        lists = [part.joined for part in packed]
        (loss, added), joined = self._strategy.run(_exchange, args=(sent, lists))
        parts = zip(packed, added, joined, strict=True)
        return loss, [part.unpack(sums, rows) for part, sums, rows in parts]

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        return self._strategy.run(_exchange, args=(values, []))[0]

    # Between steps; all workers have to call these in the same order.

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Tells the others if this worker fails before `begin`.

        Also says of a worker that was lost what to do.

        Raises:
          WorkerError: if the connection to another worker breaks.
        """
        try:
            yield
        except LOST as error:
            raise WorkerError(
                f"All {self.count} workers should stay up to the end. Worker "
                f"{self.number} has lost another one ({type(error).__name__}). Stop "
                "what is left of them and start all again with --resume."
            ) from error
        except Exception:
            if not self._met:
                self._meet(_FAILED, 0)
            raise

    def begin(self, fingerprint: Mapping[str, Any]) -> bool:
        """Meets the others; returns whether there is something to train.

        Args:
          fingerprint: of configuration and log, JSON-able.

        Raises:
          WorkerError: if another worker has failed, or has another fingerprint.
        """
        codes, sums = self._meet(_READY, _crc(json.dumps(fingerprint).encode()))
        failed = np.flatnonzero(codes == _FAILED)
        if len(failed):
            raise WorkerError(
                f"All {self.count} workers should be able to train. Worker "
                f"{failed[0]} stopped; its own message says why."
            )
        if codes[0] == _DONE:
            return False
        other = np.flatnonzero(sums != sums[0])
        if len(other):
            raise WorkerError(
                "All workers should be given the same configuration and the same log. "
                f"Worker {other[0]} differs from worker 0. Start them with the same "
                "command and copies of the same files."
            )
        return True

    def dismiss(self) -> None:
        """Tells the others, in place of `begin`, that nothing is left to do."""
        self._meet(_DONE, 0)

    def finish(self) -> None:
        """Waits until every worker has come to its end."""
        self._gather(np.zeros(1, np.int32))
        try:
            # Who comes through this knows that all came through the first one, and may
            # leave while others still wait for its last message.
            self._gather(np.zeros(1, np.int32))
        except LOST:
            pass

    def _meet(self, code: int, fingerprint: int) -> tuple[np.ndarray, np.ndarray]:
        self._met = True
        told = self._gather(np.array([code, fingerprint], np.int32))
        return told[:, 0], told[:, 1]

    def agree(self, data: Sequence[Any]) -> bool:
        """Returns whether arrays are bit-equal on all workers."""
        crc = 0
        for array in data:
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        sums = self._gather(np.array([np.uint32(crc)], np.uint32).view(np.int32))
        return bool((sums == sums[0]).all())

    def value_from_chief(self, make: Callable[[], float | None]) -> float | None:
        """Returns what `make` returns on the chief, which alone calls it."""
        sent = np.zeros(3, np.int32)
        if self.is_chief:
            value = make()
            sent[0] = value is not None
            sent[1:] = np.array([value or 0.0], np.float64).view(np.int32)
        sent = self._added(sent)
        return float(sent[1:].view(np.float64)[0]) if sent[0] else None

    def arrays_from_chief(
        self, state: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Arrays]:
        """Returns the chief's JSON-able state and arrays; others' are not looked at."""
        text = ""
        if self.is_chief:
            arrays = {name: np.asarray(value) for name, value in arrays.items()}
            specs = {name: [v.dtype.str, list(v.shape)] for name, v in arrays.items()}
            text = json.dumps([dict(state), specs])
        state, specs = json.loads(self._bytes_from_chief(text.encode()))
        received: Arrays = {}
        for name, (dtype, shape) in specs.items():
            own = arrays[name].tobytes() if self.is_chief else b""
            data = self._bytes_from_chief(own)
            received[name] = np.frombuffer(data, dtype).reshape(shape).copy()
        return dict(state), received

    def files_from_chief(self, folder: Path) -> None:
        """Copies the files of a folder of the chief's to the others' folder."""
        files = sorted(path for path in folder.glob("*") if path.is_file())
        arrays = {
            path.name: np.frombuffer(path.read_bytes(), np.uint8) for path in files
        }
        _, received = self.arrays_from_chief({}, arrays if self.is_chief else {})
        if not self.is_chief:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in received.items():
                (folder / name).write_bytes(data.tobytes())

    def _bytes_from_chief(self, data: bytes) -> bytes:
        # As whole numbers, whose sum with the others' zeros is exact.
        length = np.array([len(data)], np.int64).view(np.int32)
        size = int(self._added(length).view(np.int64)[0])
        numbers = np.zeros(-(-size // 4), np.int32)
        if self.is_chief:
            numbers = np.frombuffer(data.ljust(4 * len(numbers), b"\0"), np.int32)
        parts = [
            self._added(numbers[start : start + _CHUNK])
            for start in range(0, len(numbers), _CHUNK)
        ]
        joined = np.concatenate(parts) if parts else numbers
        return joined.tobytes()[:size]

    def _gather(self, own: np.ndarray) -> np.ndarray:
        """Returns int32 [workers, n] of every worker's int32 [n]."""
        table = np.zeros((self.count, len(own)), np.int32)
        table[self.number] = own
        return self._added(table.reshape(-1)).reshape(table.shape)

    def _added(self, numbers: np.ndarray) -> np.ndarray:
        total: np.ndarray = self._total(tf.constant(numbers, tf.int32)).numpy()
        return total


def open_workers(distribution: str) -> Workers | None:
    """Joins the cluster that the environment variable `TF_CONFIG` describes.

    To be called before TensorFlow runs anything; waits for the other workers.

    Args:
      distribution: `multi_worker`, or anything else for `None`, whatever `TF_CONFIG`
        says.

    Raises:
      ConfigError: if `TF_CONFIG` is missing, or describes something else than workers.
    """
    if distribution != "multi_worker":
        return None
    number, count = cluster_place(os.environ.get("TF_CONFIG"))
    return Workers(number, count)


def cluster_place(text: str | None) -> tuple[int, int]:
    """Returns the number of this worker, from 0, and how many there are.

    Args:
      text: contents of `TF_CONFIG`.

    Raises:
      ConfigError: see `open_workers`.

    Example:
      >>> cluster = '{"cluster": {"worker": ["a:1", "b:1"]}, '
      >>> cluster_place(cluster + '"task": {"type": "worker", "index": 1}}')
      (1, 2)
    """
    example = (
        '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    jobs = {"chief": (0, 1), "worker": (0, ANY)}
    cluster, kind, index = read_cluster(text, "multi_worker", jobs, example)
    before = len(cluster["chief"]) if kind == "worker" else 0
    return before + index, sum(map(len, cluster.values()))


def read_cluster(
    text: str | None,
    distribution: str,
    jobs: Mapping[str, tuple[int, int]],
    example: str,
) -> tuple[dict[str, list[str]], str, int]:
    """Returns the addresses by job, and the job and number of this process.

    Args:
      text: contents of `TF_CONFIG`.
      distribution: what needs it.
      jobs: of which there may be so many processes, at least and at most.
      example: of such contents.

    Raises:
      ConfigError: if it is something else.
    """
    try:
        tree = json.loads(text or "")
        given, task = dict(tree["cluster"]), tree["task"]
        cluster = {name: list(given.pop(name, ())) for name in jobs}
        kind, index = str(task["type"]), int(task["index"])
        if given or not 0 <= index < len(cluster.get(kind, ())):
            raise ValueError(f"task {kind} {index} of {sorted(tree['cluster'])}")
        for name, (least, most) in jobs.items():
            if not least <= len(cluster[name]) <= most:
                raise ValueError(f"{len(cluster[name])} of job {name}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--distribution {distribution} needs TF_CONFIG, as in {example}. "
            f"Received: {repr(error) if text else 'none'}. See docs/scale.md."
        ) from error
    return cluster, kind, index


def _exchange(values: Any, lists: Any) -> tuple[Any, Any]:
    """Adds values up over the workers and joins lists, in a replica's context."""
    context = tf.distribute.get_replica_context()
    # Copies, which are made on the device of this worker.
    values, lists = tf.nest.map_structure(tf.identity, (values, lists))
    values = context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    if tf.nest.flatten(lists):
        lists = context.all_gather(lists, axis=0)
    return values, lists


def _crc(data: bytes) -> int:
    """Returns a checksum that fits into an int32."""
    return zlib.crc32(data) & 0x7FFFFFFF
