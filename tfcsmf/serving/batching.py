"""Joining requests of several connections into one run of the graph."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfcsmf.serving.servable import Servable

Tensors = dict[str, np.ndarray]
DESCRIPTION = "assets.extra/cascade.json"


@dataclass(frozen=True)
class BatchingOptions:
    """When requests are joined.

    Attributes:
      max_rows: most rows of a joined run.
      max_delay: longest time, in seconds, a request waits for others.
    """

    max_rows: int = 64
    max_delay: float = 0.002


@dataclass
class _Batch:
    """Requests that will run together; the first one's thread runs them."""

    feeds: list[Tensors] = field(default_factory=list)
    rows: int = 0
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    results: list[Tensors | BaseException] = field(default_factory=list)


class Batcher:
    """Runs a model, joining requests that come at the same time.

    Joined are requests for the same tensors whose inputs have the same shapes but
    for the first dimension, where the signature leaves that dimension open for all
    inputs and outputs. An input named in `paddable` may differ in its second
    dimension too and is padded with "". A request that fails fails alone.

    Args:
      servable: the model.
      options: limits.
      paddable: tensor names whose value does not change with "" at the end.
      observe: called with the number of rows of every joined run.
    """

    def __init__(
        self,
        servable: Servable,
        options: BatchingOptions,
        paddable: Iterable[str] = (),
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._servable = servable
        self._options = options
        self._paddable = frozenset(paddable)
        self._observe = observe
        self._joinable = {
            frozenset(info.name for info in signature.inputs.values())
            for signature in servable.signatures.values()
            if _is_open(signature)
        }
        self._lock = threading.Lock()
        self._open: dict[tuple[Any, ...], _Batch] = {}
        self._active = 0

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Signature definitions by name."""
        return self._servable.signatures

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """See `Servable.run`."""
        wanted = tuple(sorted(set(fetches)))
        rows = _rows(feeds)
        if (
            not 0 < rows < self._options.max_rows
            or frozenset(feeds) not in self._joinable
        ):
            return self._servable.run(feeds, wanted)
        key = (wanted, *(self._key(name, feeds[name]) for name in sorted(feeds)))
        with self._lock:
            self._active += 1
            crowded = self._active > 1
            batch, place = self._join(key, dict(feeds), rows)
        try:
            if place == 0:
                self._lead(key, batch, wanted, crowded)
            batch.done.wait()
        finally:
            with self._lock:
                self._active -= 1
        result = batch.results[place]
        if isinstance(result, BaseException):
            raise result
        return result

    def _key(self, name: str, value: np.ndarray) -> tuple[Any, ...]:
        free = 2 if name in self._paddable and value.ndim > 1 else 1
        return (name, value.dtype.str, value.ndim, value.shape[free:])

    def _join(
        self, key: tuple[Any, ...], feeds: Tensors, rows: int
    ) -> tuple[_Batch, int]:
        """Adds a request to the open batch, or opens one; needs the lock."""
        batch = self._open.get(key)
        if batch and batch.rows + rows > self._options.max_rows:
            batch.full.set()
            batch = None
        if batch is None:
            batch = self._open[key] = _Batch()
        batch.feeds.append(feeds)
        batch.rows += rows
        if batch.rows == self._options.max_rows:
            batch.full.set()
            del self._open[key]
        return batch, len(batch.feeds) - 1

    def _lead(
        self,
        key: tuple[Any, ...],
        batch: _Batch,
        fetches: tuple[str, ...],
        crowded: bool,
    ) -> None:
        # Alone, nobody is worth waiting for.
        if crowded:
            batch.full.wait(self._options.max_delay)
        with self._lock:
            if self._open.get(key) is batch:
                del self._open[key]
        try:
            batch.results = self._run(batch, fetches)
        except BaseException as error:
            batch.results = [error] * len(batch.feeds)
        finally:
            batch.done.set()

    def _run(
        self, batch: _Batch, fetches: tuple[str, ...]
    ) -> list[Tensors | BaseException]:
        if self._observe:
            self._observe(batch.rows)
        if len(batch.feeds) > 1:
            try:
                joined = {name: self._concat(batch, name) for name in batch.feeds[0]}
                outputs = self._servable.run(joined, fetches)
                if all(_has_rows(value, batch.rows) for value in outputs.values()):
                    return _split(outputs, [_rows(feeds) for feeds in batch.feeds])
            except Exception:
                pass  # one of them is to blame: each gets its own answer
        results: list[Tensors | BaseException] = []
        for feeds in batch.feeds:
            try:
                results.append(self._servable.run(feeds, fetches))
            except Exception as error:
                results.append(error)
        return results

    def _concat(self, batch: _Batch, name: str) -> np.ndarray:
        values = [feeds[name] for feeds in batch.feeds]
        if name in self._paddable and values[0].ndim > 1:
            width = max(value.shape[1] for value in values)
            values = [_padded(value, width) for value in values]
        return np.concatenate(values)


def paddable_inputs(servable: Servable) -> set[str]:
    """Returns the tensors of a tfcsmf export that "" or 0 at a row's end is for."""
    path = servable.path / DESCRIPTION
    if not path.is_file():
        return set()
    description = json.loads(Path(path).read_text(encoding="utf-8"))
    inputs = description.get("query_inputs", {})
    names = {
        spec["argument"]
        for spec in inputs.values()
        if spec["kind"] in ("history", "multi", "times")
    }
    names |= {spec["argument"] for spec in description.get("filters", {}).values()}
    names.add("exclude_item_ids")
    return {
        info.name
        for signature in servable.signatures.values()
        for alias, info in signature.inputs.items()
        if alias in names
    }


def _is_open(signature: Any) -> bool:
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    shapes = [info.tensor_shape for info in infos]
    return bool(signature.inputs) and all(
        not shape.unknown_rank and shape.dim and shape.dim[0].size == -1
        for shape in shapes
    )


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    """The common first dimension; 0 where there is none."""
    sizes = {value.shape[0] if value.ndim else 0 for value in feeds.values()}
    return sizes.pop() if len(sizes) == 1 else 0


def _has_rows(value: np.ndarray, rows: int) -> bool:
    return value.ndim > 0 and value.shape[0] == rows


def _padded(value: np.ndarray, width: int) -> np.ndarray:
    if value.shape[1] == width:
        return value
    shape = (value.shape[0], width - value.shape[1], *value.shape[2:])
    fill = b"" if value.dtype == object else 0
    return np.concatenate([value, np.full(shape, fill, value.dtype)], axis=1)


def _split(outputs: Tensors, counts: list[int]) -> list[Tensors | BaseException]:
    ends = np.cumsum(counts)
    return [
        {name: value[end - count : end] for name, value in outputs.items()}
        for end, count in zip(ends, counts, strict=True)
    ]
