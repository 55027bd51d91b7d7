"""tfcsmf: multi-objective embedding-based retrieval in TensorFlow.

One two-tower network, trained in cascade (CSMF, arXiv 2504.12920), gives one
vector and one index query for any weighted mix of objectives.

Importing this package selects Keras 2 (`tf-keras`), which
tensorflow-recommenders needs, and fails early when Keras 3 is already active.
"""

from tfcsmf._keras import select_keras2

select_keras2()

__version__ = "0.1.0"

__all__ = ["__version__"]
