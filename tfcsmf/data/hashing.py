"""Rows that rare ids share by a hash, where they have none of their own."""

from __future__ import annotations

import numpy as np

from tfcsmf.data.rows import NUM_RESERVED, UNKNOWN

_BLOCK = 1_000_000  # ids that are hashed at once


def hash_ids(ids: np.ndarray, buckets: int) -> np.ndarray:
    """Returns the bucket of every id, int64 [n].

    It is `tf.strings.to_hash_bucket_fast` (FarmHash's Fingerprint64 of the bytes),
    which an exported model computes as well.

    Args:
      ids: object array of strings [n].
      buckets: >= 1.

    Example:
      >>> hash_ids(np.array(["u1", "u2", "u1"], object), 1000).tolist()
      [459, 697, 459]
    """
    # Imported here, as by feature encoders: most preparations hash nothing.
    import tensorflow as tf

    parts = [np.zeros(0, np.int64)]
    for start in range(0, len(ids), _BLOCK):
        part = tf.constant(ids[start : start + _BLOCK].tolist(), tf.string)
        parts.append(tf.strings.to_hash_bucket_fast(part, buckets).numpy())
    return np.concatenate(parts)


def bucket_rows(ids: np.ndarray, buckets: int, trained: int) -> np.ndarray:
    """Returns the embedding row of every bucket, int32 [buckets].

    A bucket that holds none of the ids has no row: it would never be trained, and who
    comes with such an id is better answered as `UNKNOWN`.

    Args:
      ids: rare ids that training meets, object array of strings.
      buckets: how many.
      trained: ids with a row of their own, which come first.

    Example:
      >>> rows = bucket_rows(np.array(["u1", "u2"], object), 1000, trained=5)
      >>> rows[[459, 697, 0]].tolist()
      [8, 9, 2]
    """
    used = np.unique(hash_ids(ids, buckets))
    rows = np.full(buckets, UNKNOWN, np.int32)
    rows[used] = np.arange(len(used), dtype=np.int32) + NUM_RESERVED + trained
    return rows
