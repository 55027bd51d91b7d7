"""Whether the files of a prepared folder are those that were written."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from tfcsmf.data.sharded.store import PARTS, shard_path
from tfcsmf.errors import DataError

# Bytes of a TFRecord file around each record.
_AROUND = 16


def check_files(path: str, tree: Mapping[str, Any]) -> None:
    """Looks whether all files are there, and as long as they were.

    Args:
      path: of the folder.
      tree: contents of `prepared.json`.

    Raises:
      DataError: naming the first that is not.
    """
    sizes = {name: size for name, (size, _) in tree["tables"].items()}
    for number, files in tree["files"].items():
        for part, records in zip(PARTS, files, strict=True):
            file = shard_path("", part, int(number))
            sizes[file] = sum(size + _AROUND for size, _ in records)
    for name, size in sizes.items():
        file = posixpath.join(path, name)
        try:
            found = int(tf.io.gfile.stat(file).length)
        except tf.errors.NotFoundError as error:
            raise damaged(file, "it is missing") from error
        if found != size:
            raise damaged(file, f"it has {found} bytes instead of {size}")


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what TensorFlow says of files of a folder into a `DataError`."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        raise damaged(path, error.message.splitlines()[0]) from error


def damaged(file: str, reason: str) -> DataError:
    """Returns the error for a file that is not as it was written."""
    return DataError(
        "A prepared log should have the files that were written. Received: "
        f"{file!r}, which is damaged: {reason}. Copy it again, or prepare the log anew "
        "(pipelines/prepare.py)."
    )


def read_bytes(path: str) -> bytes:
    """Reads a whole file, wherever TensorFlow can read."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read())
