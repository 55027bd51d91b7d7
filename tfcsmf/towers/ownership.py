"""Who owns a parameter: the stage that trained it, or nobody yet.

Every trainable tensor of the towers carries an integer *owner* tensor that
broadcasts to its shape: `FREE`, or the index (0-based) of the stage that owns
the entry. Ownership is a partition: an entry has exactly one owner or is `FREE`.
Weights of inputs that only later stages see are `CLOSED` until their stage begins.

Three rules hold everywhere and make frozen objectives bit-exact:

- pass `t` of a tower uses exactly the entries with `owner <= t`;
- an entry that is in no pass yet is physically zero (`FREE`, outside the stage being
  trained), or belongs to an input that the stage is not given (`CLOSED`, which may
  hold what the first stage learned of it), so that stage uses the raw tensors,
  unmasked;
- only entries of the current stage receive optimizer *updates*.

Source: our reading of CSMF (arXiv 2504.12920), the prune-freeze-reuse scheme of
PackNet and CONURE.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

# Larger than any stage, so `owner <= stage` never holds for them.
FREE = 127
CLOSED = 126

Role = Literal["kernel", "output", "bias", "table"]


@dataclass(frozen=True)
class OwnedParameter:
    """A trainable tensor and its owners.

    Attributes:
      name: for reports, for example `query/hidden_0/kernel`.
      variable: the parameter.
      owner: int8, broadcasts to the shape of `variable`.
      role: what pruning does with it. `kernel`: freed by weight or by unit;
        `output`: the last layer, freed by output dimension jointly for both
        towers; `table`: an embedding table, freed at the granularity of its
        owner's shape; `bias`: never freed, owned by the first stage.
      scale: of a table: standard deviation of fresh entries.
      shard_of: of a shard of a table: the table's name.
    """

    name: str
    variable: tf.Variable
    owner: tf.Variable
    role: Role
    scale: float = 1.0
    shard_of: str | None = None

    @property
    def whole(self) -> str:
        """Name for reports: the same for all shards of a table."""
        return self.shard_of or self.name

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.variable.shape))

    def owner_counts(self) -> Counter[int]:
        """Returns the number of owner entries by owner, `FREE` and `CLOSED` too."""
        owners, counts = np.unique(self.owner.numpy(), return_counts=True)
        return Counter(dict(zip(owners.tolist(), counts.tolist(), strict=True)))

    def owner_shares(self) -> dict[int, float]:
        """Returns the share of entries by owner, `FREE` and `CLOSED` included."""
        counts = self.owner_counts()
        return {owner: count / counts.total() for owner, count in counts.items()}


def new_owner(name: str, shape: tuple[int, ...]) -> tf.Variable:
    """Returns an owner tensor with every entry `FREE`."""
    initial = tf.fill(shape, tf.constant(FREE, tf.int8))
    return tf.Variable(initial, trainable=False, name=name, dtype=tf.int8)


def keep_owned(values: tf.Tensor, owner: tf.Tensor, stage: int) -> tf.Tensor:
    """Zeroes the entries that pass `stage` does not use.

    Args:
      values: float tensor.
      owner: int8 tensor that broadcasts to the shape of `values`.
      stage: the pass, 0-based.

    Example:
      >>> owner = tf.constant([0, 1, FREE], tf.int8)
      >>> keep_owned(tf.constant([1.0, 2.0, 3.0]), owner, 1).numpy().tolist()
      [1.0, 2.0, 0.0]
    """
    used = tf.less_equal(owner, tf.constant(stage, tf.int8))
    return tf.where(used, values, tf.zeros([], values.dtype))
