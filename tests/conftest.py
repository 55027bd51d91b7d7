"""Fixtures and process settings shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Read by TensorFlow when it is first imported: quiet, and friendly to neighbours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

import tfcsmf  # noqa: E402, F401  (selects Keras 2 before any test meets TensorFlow)

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Returns a function: data set name -> its folder, or the test is skipped."""

    def find(name: str) -> Path:
        folder = _SHARED / name
        if not folder.is_dir():
            pytest.skip(f"needs the data set {name!r} in ../shared/data/{name}")
        return folder

    return find
