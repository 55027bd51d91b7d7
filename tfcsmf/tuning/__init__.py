"""Sweeps: keras-tuner over the configuration of the whole cascade."""

from tfcsmf.tuning.space import DEFAULT_SPACE, Space
from tfcsmf.tuning.sweep import SweepSettings, run_sweep

__all__ = ["DEFAULT_SPACE", "Space", "SweepSettings", "run_sweep"]
