"""Serving exported models: TensorFlow Serving's APIs in a process of our own.

`Client` asks a server; `Server` is one. The latter is imported when it is first
named, because it needs TensorFlow and a client does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfcsmf.serving.client import Client, RankedItem

if TYPE_CHECKING:
    from tfcsmf.serving.batching import BatchingOptions
    from tfcsmf.serving.http_app import Limits
    from tfcsmf.serving.server import Server, ServerOptions
    from tfcsmf.serving.versions import ModelOptions

__all__ = [
    "BatchingOptions",
    "Client",
    "Limits",
    "ModelOptions",
    "RankedItem",
    "Server",
    "ServerOptions",
]

_MODULES = {
    "BatchingOptions": "batching",
    "Limits": "http_app",
    "ModelOptions": "versions",
    "Server": "server",
    "ServerOptions": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
