"""Optimizers that update only touched rows and only the stage's own entries."""

from tfcsmf.optimizers.row_sparse import RowAdagrad, RowAdam

__all__ = ["RowAdagrad", "RowAdam"]
