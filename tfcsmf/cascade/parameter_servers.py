"""Other processes that hold the shards of large tables for the one that trains.

The chief computes every step. Shards, with their owners, optimizer slots and copies,
are variables on the devices of parameter servers, and what is done with them row by row
is done there (`tfcsmf.towers.shards`). As one process takes the steps, one after the
other, its numbers are those of a process that holds everything: of
`tf.distribute.ParameterServerStrategy` only the servers are used, not the workers,
whose updates would depend on timing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import tensorflow as tf

from tfcsmf.cascade.workers import ANY, LOST, read_cluster
from tfcsmf.config import Config
from tfcsmf.errors import ConfigError, WorkerError
from tfcsmf.towers.shards import TABLE_JOB

_LOG = logging.getLogger(__name__)

_CHIEF = "chief"
_POLL = 1.0  # seconds between looks at whether the chief is up
_TIMEOUT = 10.0  # seconds that a look may take
_MISSED = 3  # unanswered looks in a row after which the chief is gone

Cluster = Mapping[str, Sequence[str]]  # addresses by job


class ParameterServers:
    """The cluster of a chief and its parameter servers, seen from one of them.

    To be made before TensorFlow runs anything, because its runtime then becomes a
    server of the cluster; the chief waits until all parameter servers have started.

    Args:
      cluster: one chief, and parameter servers.
      index: of this parameter server; `None` for the chief.

    Attributes:
      devices: names of those that hold shards.
    """

    def __init__(self, cluster: Cluster, index: int | None) -> None:
        self._cluster = cluster
        self._index = index
        servers = cluster[TABLE_JOB]
        # In main memory, also where there are accelerators.
        self.devices = tuple(
            f"/job:{TABLE_JOB}/task:{number}/device:CPU:0"
            for number in range(len(servers))
        )
        if self.is_chief:
            for address in servers:
                _wait_for(address)
            tf.config.experimental_connect_to_cluster(
                tf.train.ClusterSpec(dict(cluster)), job_name=_CHIEF, task_index=0
            )

    @property
    def is_chief(self) -> bool:
        """Whether this process trains."""
        return self._index is None

    def serve(self) -> None:
        """Holds shards until the chief, once it has started, has ended."""
        server = tf.distribute.Server(
            tf.train.ClusterSpec(dict(self._cluster)), TABLE_JOB, self._index
        )
        (chief,) = self._cluster[_CHIEF]
        _wait_for(chief)
        missed = 0
        while missed < _MISSED:
            time.sleep(_POLL)
            missed = 0 if _answers(chief) else missed + 1
        _LOG.info("The chief at %s has ended.", chief)
        del server

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Says of a parameter server that was lost what to do.

        Raises:
          WorkerError: if the connection to one breaks.
        """
        try:
            yield
        except LOST as error:
            raise WorkerError(
                f"All {len(self.devices)} parameter servers should stay up to the end. "
                f"One was lost ({type(error).__name__}). Stop what is left of them "
                "and start all again with --resume."
            ) from error


def open_servers(distribution: str) -> ParameterServers | None:
    """Joins the cluster that the environment variable `TF_CONFIG` describes.

    To be called before TensorFlow runs anything.

    Args:
      distribution: `parameter_server`, or anything else for `None`.

    Raises:
      ConfigError: if `TF_CONFIG` is missing, or describes something else.
    """
    if distribution != "parameter_server":
        return None
    return ParameterServers(*server_place(os.environ.get("TF_CONFIG")))


def server_place(text: str | None) -> tuple[Cluster, int | None]:
    """Returns the cluster and the number of this parameter server in it.

    Args:
      text: contents of `TF_CONFIG`.

    Returns:
      Addresses by job, and `None` for the chief.

    Raises:
      ConfigError: see `open_servers`.

    Example:
      >>> cluster = '{"cluster": {"chief": ["a:1"], "ps": ["b:1", "c:1"]}, '
      >>> server_place(cluster + '"task": {"type": "ps", "index": 1}}')[1]
      1
    """
    example = (
        '{"cluster": {"chief": ["HOST:PORT"], "ps": ["HOST:PORT", "HOST:PORT"]}, '
        '"task": {"type": "ps", "index": 0}}'
    )
    jobs = {_CHIEF: (1, 1), TABLE_JOB: (1, ANY)}
    cluster, kind, index = read_cluster(text, "parameter_server", jobs, example)
    return cluster, index if kind == TABLE_JOB else None


def check_shards(config: Config) -> None:
    """Refuses what needs whole tables in the chief's memory.

    Raises:
      ConfigError: naming the setting.
    """
    refused = (
        ("towers.embedding_ownership", config.towers.embedding_ownership, "columns"),
        ("cascade.criterion", config.cascade.criterion, "fisher"),
    )
    for name, value, whole in refused:
        if value == whole:
            raise ConfigError(
                f"--distribution parameter_server prunes tables shard by shard. "
                f"Received: {name}={whole}, which needs all of a table at once. Choose "
                "another value."
            )


def _wait_for(address: str) -> None:
    """Returns once a process listens at an address."""
    began, told = time.monotonic(), False
    while not _answers(address):
        if not told and time.monotonic() - began > _TIMEOUT:
            _LOG.info("Waiting for %s to start.", address)
            told = True
        time.sleep(0.1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT):
            return True
    except OSError:
        return False
