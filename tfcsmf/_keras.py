"""Selects Keras 2 before TensorFlow resolves `tf.keras`."""

import os
import sys

_SWITCH = "TF_USE_LEGACY_KERAS"


def select_keras2() -> None:
    """Makes `tf.keras` mean Keras 2, or explains why that is impossible.

    TensorFlow decides which Keras `tf.keras` is when the attribute is first
    used, by the environment variable `TF_USE_LEGACY_KERAS`; setting it
    afterwards has no effect, so a late import is refused instead of failing
    obscurely in tensorflow-recommenders.

    Raises:
      ImportError: if `tf.keras` is Keras 3 already.
    """
    previous = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return
    # Keras 2 as tf.keras has no __version__; Keras 3 always has one.
    version = getattr(tensorflow.keras, "__version__", "2")
    if version.startswith("3."):
        raise ImportError(
            "tfcsmf needs tf.keras to be Keras 2 (tf-keras), but Keras "
            f"{version} is already active ({_SWITCH}={previous!r} when TensorFlow "
            "was imported). Import tfcsmf before tensorflow, or set "
            f"{_SWITCH}=1 before starting Python."
        )
