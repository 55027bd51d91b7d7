"""All models of a server: names, versions and labels to loaded models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfcsmf.errors import ConfigError
from tfcsmf.serving.batching import (
    DESCRIPTION,
    Batcher,
    BatchingOptions,
    paddable_inputs,
)
from tfcsmf.serving.inference import Runner
from tfcsmf.serving.metrics import Metrics
from tfcsmf.serving.servable import Servable
from tfcsmf.serving.status import invalid, not_found
from tfcsmf.serving.versions import ModelOptions, ModelVersions, VersionStatus
from tfcsmf.serving.warmup import run_warmup

_JOIN_SECONDS = 5.0
_LOGGER = logging.getLogger("tfcsmf.serving")


@dataclass(frozen=True)
class ModelSpec:
    """Which model a request names; at most one of version and label is given."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Handle:
    """A model held for one request."""

    name: str
    version: int
    runner: Runner
    path: Path


class Models:
    """Loads and finds models.

    Args:
      options: the models.
      poll_seconds: how often their folders are looked at.
      timeout: seconds after which a run is cancelled; 0: never.
      max_rows: most rows of a request to an export of tfcsmf; 0: any number. Of other
        models the first dimension need not be the batch.
      batching: joins requests; None: every request runs alone.
      metrics: counts loads and versions.
    """

    def __init__(
        self,
        options: Sequence[ModelOptions],
        *,
        poll_seconds: float = 1.0,
        timeout: float = 0.0,
        max_rows: int = 0,
        batching: BatchingOptions | None = None,
        metrics: Metrics,
    ) -> None:
        self._timeout = timeout
        self._max_rows = max_rows
        self._batching = batching
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._batchers: dict[Servable, Batcher] = {}
        self._models: dict[str, ModelVersions] = {}
        for model in options:
            if model.name in self._models:
                raise ConfigError(
                    f"Model names should be distinct. Received: {model.name!r} twice."
                )
            self._models[model.name] = self._versions(model)
        self._threads = [
            threading.Thread(
                target=self._watch, args=(versions,), name=f"watch-{name}", daemon=True
            )
            for name, versions in self._models.items()
        ]

    def _versions(self, options: ModelOptions) -> ModelVersions:
        return ModelVersions(
            options,
            lambda path: self._load(options.name, path),
            settle=self._poll_seconds,
            on_change=lambda versions: self._changed(options.name, versions),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The models, loaded or not, in the order they were given."""
        return tuple(self._models)

    @property
    def ready(self) -> bool:
        """Whether every model has a version that can answer."""
        return all(versions.ready for versions in self._models.values())

    def start(self) -> None:
        """Begins to watch the folders, each in a thread of its own."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends watching and frees the models once their requests are done."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                # One that is loading just now need not finish.
                thread.join(_JOIN_SECONDS)
        for versions in self._models.values():
            versions.close()

    def statuses(self, spec: ModelSpec) -> dict[int, VersionStatus]:
        """Returns version statuses: of one version, or of all.

        Raises:
          RequestError: if there is no such model, version or label.
        """
        versions = self._models.get(spec.name)
        found = versions.statuses() if versions else {}
        number = self._version(spec)
        if number is None:
            if not found:
                raise not_found(f"Could not find any versions of model {spec.name}")
            return found
        if number not in found:
            raise not_found(f"Could not find version {number} of model {spec.name}")
        return {number: found[number]}

    @contextmanager
    def handle(self, spec: ModelSpec) -> Iterator[Handle]:
        """Holds the model of a request for the time of the block.

        Raises:
          RequestError: if it is not served.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = self._version(spec)
        versions = self._models.get(spec.name)
        if versions is None:
            wanted = (
                f"Latest({spec.name})"
                if number is None
                else f"Specific({spec.name}, {number})"
            )
            raise not_found(f"Servable not found for request: {wanted}")
        servable, number = versions.acquire(number)
        try:
            runner: Runner = self._batchers.get(servable, servable)
            yield Handle(spec.name, number, runner, servable.path)
        finally:
            servable.release()

    def _version(self, spec: ModelSpec) -> int | None:
        if spec.label is None:
            return spec.version
        model = self._models.get(spec.name)
        labels = model.options.labels if model else {}
        if spec.label not in labels:
            raise invalid(f"Unrecognized servable version label: {spec.label}")
        return labels[spec.label]

    def _watch(self, versions: ModelVersions) -> None:
        while not self._stopped.is_set():
            try:
                versions.poll()
            except Exception:  # a watcher that dies would end all updates
                _LOGGER.exception("watching %s failed", versions.options.base_path)
            self._stopped.wait(self._poll_seconds)

    def _load(self, name: str, path: Path) -> Servable:
        try:
            ours = (path / DESCRIPTION).is_file()
            servable = Servable(path, self._timeout, self._max_rows if ours else 0)
            try:
                count = run_warmup(servable, path)
            except BaseException:
                servable.retire()
                raise
        except Exception:
            self._metrics.loads.labels(name, "fail").inc()
            raise
        self._metrics.loads.labels(name, "success").inc()
        if not count:
            _LOGGER.warning("%s has no warm-up requests: its first answers wait", path)
        if self._batching:
            self._batchers[servable] = Batcher(
                servable,
                self._batching,
                paddable_inputs(servable),
                self._metrics.batch_rows.labels(name).observe,
            )
        return servable

    def _changed(self, name: str, available: list[int]) -> None:
        self._metrics.version.labels(name).set(max(available, default=0))
        for servable in list(self._batchers):
            if servable.retired:
                self._batchers.pop(servable, None)


def read_model_config(path: str) -> list[ModelOptions]:
    """Reads TensorFlow Serving's `--model_config_file`.

    Raises:
      ConfigError: if it cannot be read or used.
    """
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text = Path(path).read_text(encoding="utf-8")
        text_format.Parse(text, config)
    except (OSError, text_format.ParseError) as error:
        raise ConfigError(
            "The model configuration should be a text file that holds a "
            f"ModelServerConfig. Received: {path!r} ({error}). See the page of "
            "TensorFlow Serving on its configuration."
        ) from error
    models = [_from_proto(model) for model in config.model_config_list.config]
    if not models:
        raise ConfigError(
            "The model configuration should name at least one model in "
            f"`model_config_list`. Received: {path!r}. Add `config {{...}}` to it."
        )
    return models


def _from_proto(model: Any) -> ModelOptions:
    policy = model.model_version_policy
    latest, specific = 1, ()
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        latest = 0
    elif kind == "latest":
        latest = policy.latest.num_versions or 1
    elif kind == "specific":
        specific = tuple(policy.specific.versions)
    return ModelOptions(
        model.name,
        Path(model.base_path),
        latest,
        specific,
        dict(model.version_labels),
    )
