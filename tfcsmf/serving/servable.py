"""One version of a model in memory: a SavedModel in a TensorFlow session.

TensorFlow Serving runs SavedModels through sessions too, so what a model accepts
and how its errors read is the same here, for models of TensorFlow 1 and 2.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tfcsmf.serving import json_values
from tfcsmf.serving.status import Code, RequestError, invalid, not_found

DEFAULT_SIGNATURE = "serving_default"
TAG = "serve"
_LOGGER = logging.getLogger("tfcsmf.serving")


class Servable:
    """A loaded SavedModel.

    It may be used by several threads. Who uses it holds it (`acquire`, `release`):
    a retired one is freed when the last request is done.

    Args:
      path: folder of the SavedModel.
      timeout: seconds after which a run is cancelled; 0: never.
      max_rows: largest first dimension of an input; 0: any.

    Attributes:
      signatures: signature definitions by name.

    Raises:
      Exception: whatever TensorFlow raises where the folder is no whole SavedModel.
    """

    def __init__(self, path: Path, timeout: float = 0.0, max_rows: int = 0) -> None:
        self.path = path
        self._max_rows = max_rows
        self.signatures: Mapping[str, Any] = dict(read_meta_graph(path).signature_def)
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph)
        self._timeout_ms = int(timeout * 1000)
        self._callables: dict[tuple[str, ...], Any] = {}
        self._types: dict[str, tf.DType] = {}
        self._making = threading.Lock()
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False
        try:
            with self._graph.as_default():
                tf.compat.v1.saved_model.load(self._session, [TAG], str(path))
            self._graph.finalize()
        except BaseException:
            self._session.close()
            raise

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Iterable[str],
    ) -> dict[str, np.ndarray]:
        """Runs the graph.

        Args:
          feeds: values by tensor name.
          fetches: tensor names.

        Returns:
          The fetched values by tensor name.

        Raises:
          RequestError: if there are too many rows, or a value has another data type
            than its tensor.
          tf.errors.OpError: what the graph makes of wrong values.
        """
        rows = max((len(value) for value in feeds.values() if value.ndim), default=0)
        if 0 < self._max_rows < rows:
            raise invalid(
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._max_rows}"
            )
        names, wanted = sorted(feeds), sorted(set(fetches))
        call = self._callable(names, wanted)
        for place, name in enumerate(names):
            self._check_type(place, name, feeds[name])
        values = call(*(feeds[name] for name in names))
        return dict(zip(wanted, map(_array, values), strict=True))

    def _callable(self, feeds: list[str], fetches: list[str]) -> Any:
        key = (*feeds, "->", *fetches)
        call = self._callables.get(key)
        if call is not None:
            return call
        # One at a time: the graph is optimised for each, which takes seconds, and
        # all who wait for the first answer of a model would do it at once.
        with self._making:
            if key not in self._callables:
                options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
                if self._timeout_ms:
                    options.run_options.timeout_in_ms = self._timeout_ms
                # `Session.run` looks up and checks names at every call, which takes
                # longer than a small model.
                make = self._session._make_callable_from_options
                for name in feeds:
                    self._types[name] = self._graph.get_tensor_by_name(name).dtype
                self._callables[key] = make(options)
            return self._callables[key]

    def _check_type(self, place: int, name: str, value: np.ndarray) -> None:
        # A callable's own words are others than those of a session's `Run`.
        wanted = self._types[name]
        if value.dtype != wanted.as_numpy_dtype:
            given = json_values.name(tf.as_dtype(value.dtype).as_datatype_enum)
            raise invalid(
                f"Expects arg[{place}] to be "
                f"{json_values.name(wanted.as_datatype_enum)} but {given} is provided"
            )

    @property
    def retired(self) -> bool:
        """Whether new requests can no longer hold it."""
        return self._retired

    def acquire(self) -> bool:
        """Holds the model for a request; False if it has been retired."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Ends what `acquire` began."""
        with self._lock:
            self._users -= 1
            last = self._retired and self._users == 0
        if last:
            self._close()

    def retire(self) -> None:
        """Frees the model as soon as nobody uses it."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            last = self._users == 0
        if last:
            self._close()

    def _close(self) -> None:
        self._callables.clear()
        with suppress(tf.errors.OpError):
            self._session.close()
        _LOGGER.info("freed %s", self.path)


def _array(value: Any) -> np.ndarray:
    # NumPy's own strings would lose zero bytes at the end.
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


def read_meta_graph(path: Path) -> Any:
    """Returns the graph definition that is served.

    Raises:
      RequestError: if there is no such file, or no graph tagged "serve".
      Exception: if the file cannot be parsed.
    """
    file = path / "saved_model.pb"
    text = path / "saved_model.pbtxt"
    saved = saved_model_pb2.SavedModel()
    try:
        if file.is_file():
            saved.ParseFromString(file.read_bytes())
        elif text.is_file():
            text_format.Parse(text.read_bytes(), saved)
        else:
            raise not_found(
                "Could not find SavedModel .pb or .pbtxt at supplied export directory "
                f"path: {path}"
            )
    except RequestError:
        raise
    except Exception as error:  # the class depends on the protobuf runtime
        raise RequestError(
            Code.DATA_LOSS, f"Can't parse {path} as SavedModel: {error}"
        ) from error
    for graph in saved.meta_graphs:
        if set(graph.meta_info_def.tags) == {TAG}:
            _load_operations(graph)
            return graph
    raise not_found(
        "Could not find meta graph def matching supplied tags: { serve }. To inspect "
        f"available tag-sets in the SavedModel, please use the SavedModel CLI: "
        f"`saved_model_cli`: {path}"
    )


def _load_operations(graph: meta_graph_pb2.MetaGraphDef) -> None:
    """Imports ScaNN where a graph needs it; TensorFlow names what else is missing."""
    nodes = list(graph.graph_def.node)
    for function in graph.graph_def.library.function:
        nodes.extend(function.node_def)
    unknown = [
        node.op
        for node in nodes
        if "scann" in node.op.lower() and op_def_registry.get(node.op) is None
    ]
    if unknown:
        try:
            import scann  # noqa: F401
        except ImportError as error:
            raise RequestError(
                Code.NOT_FOUND,
                f"Op type not registered '{unknown[0]}' in this process, because the "
                f"package scann cannot be imported: {error}",
            ) from error
