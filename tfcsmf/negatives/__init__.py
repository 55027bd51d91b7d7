"""Negatives: how often a candidate is drawn, and the correction for it."""

from tfcsmf.negatives.frequency import (
    StreamingFrequency,
    mixed_probability,
    sampling_probability,
)

__all__ = ["StreamingFrequency", "mixed_probability", "sampling_probability"]
