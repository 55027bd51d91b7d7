"""What the environment makes of a process, and errors between processes in words."""

import grpc
import pytest

from tfcsmf.errors import ConfigError, TfcsmfError
from tfcsmf.tuning import parallel

ADDRESS = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


@pytest.fixture
def environment(monkeypatch):
    for name in parallel.VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def give(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


@pytest.mark.parametrize(
    ("variables", "role"),
    [
        ({}, "alone"),
        ({"KERASTUNER_TUNER_ID": "worker1"}, "alone"),
        ({"KERASTUNER_TUNER_ID": "chief", **ADDRESS}, "chief"),
        ({"KERASTUNER_TUNER_ID": "worker1", **ADDRESS}, "worker"),
    ],
)
def test_roles(environment, variables, role):
    environment(**variables)
    assert parallel.role() == role


def test_half_an_address_is_refused(environment):
    environment(KERASTUNER_ORACLE_IP="127.0.0.1")
    with pytest.raises(ConfigError, match="only KERASTUNER_ORACLE_IP"):
        parallel.role()


def test_errors_between_processes_name_the_address(environment):
    environment(KERASTUNER_TUNER_ID="chief", **ADDRESS)
    with pytest.raises(ConfigError, match="127.0.0.1:8000"), parallel.explained():
        raise RuntimeError("Failed to bind to address")
    with pytest.raises(RuntimeError, match="other"), parallel.explained():
        raise RuntimeError("something other")
    environment(KERASTUNER_TUNER_ID="worker1")
    with pytest.raises(TfcsmfError, match="8000.*--resume"), parallel.explained():
        raise grpc.RpcError
