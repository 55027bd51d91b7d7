"""What the command line of `pipelines/serve.py` means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tfcsmf.errors import ConfigError
from tfcsmf.serving.batching import BatchingOptions
from tfcsmf.serving.http_app import Limits
from tfcsmf.serving.models import read_model_config
from tfcsmf.serving.server import Server, ServerOptions
from tfcsmf.serving.versions import ModelOptions


def serve(arguments: argparse.Namespace) -> None:
    """Serves until it is told to stop.

    Raises:
      ConfigError: for options that cannot be used.
    """
    Server(model_options(arguments), server_options(arguments)).run()


def model_options(arguments: argparse.Namespace) -> list[ModelOptions]:
    """Returns the models to serve.

    Raises:
      ConfigError: unless there is a folder or a configuration file.
    """
    base, file = arguments.model_base_path, arguments.model_config_file
    if bool(base) == bool(file):
        raise ConfigError(
            "Either --model-base-path or --model-config-file says what to serve. "
            f"Received: {'both' if base else 'neither'}. Give one of them."
        )
    if file:
        if arguments.label:
            raise ConfigError(
                "Labels belong into the configuration file where there is one. "
                "Received: --label as well. Write `version_labels` into the file."
            )
        return read_model_config(file)
    path = Path(base)
    if not path.is_dir():
        raise ConfigError(
            "--model-base-path should be a folder with a numbered folder per version. "
            f"Received: {base!r}, which is none. Name the `serving` folder of a run."
        )
    labels = _labels(arguments.label)
    return [ModelOptions(arguments.model_name, path, labels=labels)]


def server_options(arguments: argparse.Namespace) -> ServerOptions:
    """Returns how to serve.

    Raises:
      ConfigError: for a number out of range.
    """
    for name in ("timeout", "max_body_mb", "max_rows", "poll_seconds", "batch_rows"):
        _positive(name, getattr(arguments, name))
    if arguments.workers is not None:
        _positive("workers", arguments.workers)
    batching = None
    if arguments.batch_delay_ms > 0:
        batching = BatchingOptions(
            arguments.batch_rows, arguments.batch_delay_ms / 1000
        )
    options = ServerOptions(
        host=arguments.host,
        rest_port=arguments.rest_port,
        grpc_port=None if arguments.grpc_port < 0 else arguments.grpc_port,
        poll_seconds=arguments.poll_seconds,
        limits=Limits(
            max_body_bytes=int(arguments.max_body_mb * 2**20),
            max_rows=arguments.max_rows,
            timeout=arguments.timeout,
        ),
        batching=batching,
    )
    return replace(options, workers=arguments.workers) if arguments.workers else options


def _positive(name: str, value: float) -> None:
    if not value > 0:
        option = "--" + name.replace("_", "-")
        raise ConfigError(
            f"{option} should be greater than 0. Received: {value}. Leave it out for "
            "its default."
        )


def _labels(texts: Sequence[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for text in texts:
        name, equals, version = text.partition("=")
        if not (name and equals and version.isascii() and version.isdigit()):
            raise ConfigError(
                "--label should be name=version, such as stable=3. Received: "
                f"{text!r}. Write the number of a version behind the sign."
            )
        labels[name] = int(version)
    return labels
