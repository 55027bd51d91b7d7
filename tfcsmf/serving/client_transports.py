"""How a client reaches a server: REST through urllib3, or gRPC."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import urllib3

from tfcsmf.errors import ServingError

Tensors = Mapping[str, Any]
# Another attempt may succeed, and asking twice does no harm.
_RETRIED = (429, 502, 503)
_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_NUMPY = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_INT32": np.int32,
    "DT_INT64": np.int64,
    "DT_BOOL": np.bool_,
    "DT_STRING": object,
}


@dataclass(frozen=True)
class Target:
    """The model a client asks for.

    Attributes:
      name: its name.
      version: None for the newest.
      label: instead of a version.
      timeout: seconds per attempt.
      retries: further attempts after a connection that failed, or an answer that
        says that the server is overloaded or not there.
      backoff: seconds before the second attempt, doubled with every further one.
    """

    name: str
    version: int | None
    label: str | None
    timeout: float
    retries: int
    backoff: float


class Transport(Protocol):
    """Sends predict requests."""

    def predict(self, signature_name: str, inputs: Tensors) -> dict[str, np.ndarray]:
        """Returns the outputs by name."""

    def close(self) -> None:
        """Closes the connections."""


class RestTransport:
    """REST, over connections that are kept open.

    Args:
      url: such as http://localhost:8501.
      target: the model.
    """

    def __init__(self, url: str, target: Target) -> None:
        place = ""
        if target.version is not None:
            place = f"/versions/{target.version}"
        elif target.label is not None:
            place = f"/labels/{quote(target.label, safe='')}"
        self._path = f"/v1/models/{quote(target.name, safe='')}{place}"
        self._url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            maxsize=32,
            timeout=urllib3.Timeout(total=target.timeout),
            retries=urllib3.Retry(
                total=target.retries,
                backoff_factor=target.backoff,
                status_forcelist=_RETRIED,
                allowed_methods=None,
                raise_on_status=False,
            ),
        )
        self._outputs: dict[str, dict[str, str]] = {}

    def predict(self, signature_name: str, inputs: Tensors) -> dict[str, np.ndarray]:
        """Sends the column form; types of the answer come from the metadata."""
        body = {
            "signature_name": signature_name,
            "inputs": {name: _jsonable(value) for name, value in inputs.items()},
        }
        answer = self.call("POST", self._path + ":predict", json.dumps(body))
        types = self._types(signature_name)
        outputs = answer["outputs"]
        if len(types) == 1:
            outputs = {next(iter(types)): outputs}
        return {
            name: _array(value, types.get(name, "")) for name, value in outputs.items()
        }

    def status(self) -> dict[int, str]:
        """Returns the state of every version."""
        answer = self.call("GET", self._path)
        return {
            int(entry["version"]): entry["state"]
            for entry in answer["model_version_status"]
        }

    def metadata(self) -> dict[str, Any]:
        """Returns the signatures."""
        return self.call("GET", self._path + "/metadata")

    def description(self) -> dict[str, Any]:
        """Returns what a tfcsmf export says of itself; embedded server only."""
        return self.call("GET", f"/tfcsmf{self._path}/description")

    def call(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        """Sends one request.

        Raises:
          ServingError: if it fails for good.
        """
        try:
            response = self._pool.request(
                method,
                self._url + path,
                body=body,
                headers={"content-type": "application/json"},
            )
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(self._url, error) from error
        try:
            answer = json.loads(response.data.decode("utf-8", "replace"))
        except ValueError:
            answer = {"error": response.data[:200].decode("utf-8", "replace")}
        if response.status != 200:
            code = _CODES.get(response.status, "UNKNOWN")
            raise refused(str(answer.get("error", answer)), code)
        return answer

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    def _types(self, signature_name: str) -> dict[str, str]:
        if signature_name not in self._outputs:
            signatures = self.metadata()["metadata"]["signature_def"]["signature_def"]
            outputs = signatures[signature_name]["outputs"]
            self._outputs[signature_name] = {
                name: info["dtype"] for name, info in outputs.items()
            }
        return self._outputs[signature_name]


class GrpcTransport:
    """gRPC; retries are those of the gRPC library.

    Args:
      address: such as localhost:8500.
      target: the model.
    """

    def __init__(self, address: str, target: Target) -> None:
        # Imported here: they need TensorFlow, which REST clients do without.
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        policy = {
            "maxAttempts": min(target.retries + 1, 5),
            "initialBackoff": f"{max(target.backoff, 0.001)}s",
            "maxBackoff": "5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config: dict[str, Any] = {"methodConfig": [{"name": [{}]}]}
        if target.retries:
            config["methodConfig"][0]["retryPolicy"] = policy
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.service_config", json.dumps(config)),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._predict = stub.Predict
        self._error = grpc.RpcError
        self._address = address
        self._target = target

    def predict(self, signature_name: str, inputs: Tensors) -> dict[str, np.ndarray]:
        """Sends tensors; strings may be `str` or `bytes`."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        spec = request.model_spec
        spec.name, spec.signature_name = self._target.name, signature_name
        if self._target.version is not None:
            spec.version.value = self._target.version
        elif self._target.label is not None:
            spec.version_label = self._target.label
        for name, value in inputs.items():
            array = np.asarray(value)
            if array.dtype == np.float64 and not isinstance(value, np.ndarray):
                array = array.astype(np.float32)  # what a list of numbers means
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        try:
            response = self._predict(request, timeout=self._target.timeout)
        except self._error as error:
            code, details = error.code().name, error.details()
            if code == "UNAVAILABLE":
                raise unreachable(self._address, details) from error
            raise refused(details, code) from error
        return {name: tf.make_ndarray(t) for name, t in response.outputs.items()}

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


def unreachable(place: str, reason: object) -> ServingError:
    """Returns the error of a server that does not answer."""
    return ServingError(
        f"A server should answer at {place}. Received: {reason}. Start it with "
        "pipelines/serve.py, or name another address.",
        "UNAVAILABLE",
    )


def refused(message: str, code: str) -> ServingError:
    """Returns the error of a request the server did not fulfil."""
    return ServingError(
        f"The server should accept the request. Received: {code}: {message}. Change "
        "what it names.",
        code,
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


def _array(value: Any, dtype: str) -> np.ndarray:
    kind = _NUMPY.get(dtype)
    if kind is object:
        return np.asarray(_decoded(value), object)
    return np.asarray(value, kind)


def _decoded(value: Any) -> Any:
    """Strings as bytes, the way TensorFlow has them."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value.encode("utf-8", "surrogateescape")
