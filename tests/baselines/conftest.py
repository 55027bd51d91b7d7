"""Fixtures of the system contract: one fitted system per test class."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from system_contract import CONFIG

from tfcsmf.baselines.registry import make_system
from tfcsmf.data.prepare import prepare


@pytest.fixture(scope="session")
def log():
    return prepare(CONFIG)


@pytest.fixture(scope="class")
def folder(request, tmp_path_factory):
    return tmp_path_factory.mktemp(request.cls.name)


@pytest.fixture(scope="class")
def fitted(request, log, folder):
    system = make_system(request.cls.name, CONFIG)
    system.fit(log, folder)
    return system
