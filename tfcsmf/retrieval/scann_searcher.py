"""A trained ScaNN searcher as a resource of TensorFlow, built when a model is loaded.

ScaNN's own module makes the searcher anew in every function that searches. Loading a
SavedModel gives all of these one name, so they share one searcher: indexes of one
model answered for each other, and first requests that came at the same time replaced
it under each other's search, which ended in a segmentation fault. It was never freed
either, so every version a server loaded stayed in memory.
"""

from __future__ import annotations

import uuid
from typing import Any

import tensorflow as tf

# A searcher of one vector, see `SearcherResource`.
_EMPTY = """
num_neighbors: 1
distance_measure { distance_measure: "DotProductDistance" }
brute_force { }
"""


class SearcherResource(tf.saved_model.experimental.TrackableResource):
    """Builds a searcher from its tensors, once, and frees it with the last reference.

    Functions capture the handle, as that of a lookup table. A handle has to exist
    before variables are restored, but ScaNN makes handle and searcher in one
    operation; and it names the searcher instead of holding it. Hence an empty
    searcher is made first and replaced under the same name.

    Args:
      state: the tensors, `scann_ops.ScannState`; tracked by whoever owns both.
    """

    def __init__(self, state: Any) -> None:
        super().__init__(device="CPU")
        self._state = state
        # Unique, also among the models of a process; loading adds to it.
        self._shared_name = f"scann-{uuid.uuid4()}"
        self._initialize()

    def _create_resource(self) -> tf.Tensor:
        from scann.scann_ops.py import scann_ops

        return scann_ops.scann_create_searcher(
            x=tf.zeros([1, 1]),
            scann_config=_EMPTY,
            training_threads=1,
            shared_name=self._shared_name,
        )

    def _initialize(self) -> None:
        from scann.scann_ops.py import scann_ops

        state = self._state
        destroyed = tf.raw_ops.DestroyResourceOp(resource=self.resource_handle)
        with tf.control_dependencies([destroyed] if destroyed is not None else []):
            scann_ops.tensors_to_scann(
                state.dataset,
                state.scann_config,
                state.serialized_partitioner,
                state.datapoint_to_token,
                state.ah_codebook,
                state.hashed_dataset,
                state.int8_dataset,
                state.int8_multipliers,
                state.dp_norms,
                shared_name=self._shared_name,
            )

    def _destroy_resource(self) -> None:
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle)
