"""TensorFlow Serving's gRPC services: prediction and model status."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfcsmf.serving import inference
from tfcsmf.serving.examples import serialized_examples
from tfcsmf.serving.metrics import Metrics
from tfcsmf.serving.models import Handle, Models, ModelSpec
from tfcsmf.serving.servable import DEFAULT_SIGNATURE
from tfcsmf.serving.status import Code, RequestError, from_exception, invalid

_ACCESS = logging.getLogger("tfcsmf.serving.access")
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_METADATA = "signature_def"
# The field of `TensorProto` that holds values of a data type.
_FIELDS = {
    1: "float_val",
    2: "double_val",
    3: "int_val",
    4: "int_val",
    5: "int_val",
    6: "int_val",
    7: "string_val",
    9: "int64_val",
    10: "bool_val",
    22: "uint32_val",
    23: "uint64_val",
}


def to_proto(value: np.ndarray, dtype: int) -> Any:
    """Returns a tensor as TensorFlow Serving sends it: in the field of its type."""
    field = _FIELDS.get(dtype)
    if field is None:
        return tf.make_tensor_proto(value, tf.as_dtype(dtype))
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in value.shape:
        proto.tensor_shape.dim.add().size = size
    getattr(proto, field).extend(value.ravel().tolist())
    return proto


def from_proto(name: str, proto: Any) -> np.ndarray:
    """Returns the tensor of a request.

    Raises:
      RequestError: if it is damaged.
    """
    try:
        value = tf.make_ndarray(proto)
    except Exception:  # the kind depends on what is wrong
        raise invalid(f"tensor parsing error: {name}") from None
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if list(value.shape) != shape or proto.tensor_shape.unknown_rank:
        raise invalid(f"tensor parsing error: {name}")
    return value


def _spec(message: Any) -> ModelSpec:
    choice = message.WhichOneof("version_choice")
    return ModelSpec(
        message.name,
        message.version.value if choice == "version" else None,
        message.version_label if choice == "version_label" else None,
    )


def _fill(target: Any, handle: Handle, signature_name: str = "") -> None:
    target.name = handle.name
    target.version.value = handle.version
    target.signature_name = signature_name


class _Service:
    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def _answer(
        self, api: str, request: Any, context: Any, respond: Callable[[], Any]
    ) -> Any:
        began = time.perf_counter()
        code, served = Code.OK, ""
        try:
            response = respond()
            served = request.model_spec.name if hasattr(request, "model_spec") else ""
            return response
        except Exception as error:  # TensorFlow raises many kinds
            reason = from_exception(error)
            code = reason.code
            _abort(context, reason)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.observe(served, api, "GRPC", code.name, seconds)
            if _ACCESS.isEnabledFor(logging.INFO):
                entry = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "protocol": "grpc",
                    "client": context.peer(),
                    "method": api,
                    "milliseconds": round(seconds * 1000, 3),
                    "model": served,
                    "code": code.name,
                }
                _ACCESS.info(json.dumps(entry))

    @contextmanager
    def _handle(self, request: Any) -> Iterator[Handle]:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        with self._models.handle(_spec(request.model_spec)) as handle:
            yield handle


def _abort(context: Any, error: RequestError) -> NoReturn:
    context.abort(_CODES[error.code.value], error.message)
    raise AssertionError("abort does not return")


class PredictionService(
    _Service, prediction_service_pb2_grpc.PredictionServiceServicer
):
    """Predict, Classify, Regress, MultiInference, GetModelMetadata."""

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Runs a signature on tensors."""
        return self._answer("Predict", request, context, lambda: self._predict(request))

    def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns labels and scores of examples."""
        return self._answer(
            "Classify", request, context, lambda: self._classify(request)
        )

    def Regress(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns a number per example."""
        return self._answer("Regress", request, context, lambda: self._regress(request))

    def MultiInference(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Classifies and regresses the same examples."""
        return self._answer(
            "MultiInference", request, context, lambda: self._multi(request)
        )

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns the signatures of a model."""
        return self._answer(
            "GetModelMetadata", request, context, lambda: self._metadata(request)
        )

    def _predict(self, request: Any) -> Any:
        response = predict_pb2.PredictResponse()
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        with self._handle(request) as handle:
            inputs = {
                alias: from_proto(alias, proto)
                for alias, proto in request.inputs.items()
            }
            outputs, types = inference.predict(
                handle.runner, name, inputs, list(request.output_filter)
            )
            _fill(response.model_spec, handle, name)
        for alias, value in outputs.items():
            response.outputs[alias].CopyFrom(to_proto(value, types[alias]))
        return response

    def _classify(self, request: Any) -> Any:
        response = classification_pb2.ClassificationResponse()
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        with self._handle(request) as handle:
            examples = serialized_examples(request.input)
            rows = inference.classify(handle.runner, name, examples)
            _fill(response.model_spec, handle, name)
        for row in rows:
            classes = response.result.classifications.add().classes
            for label, score in row:
                # A string field: other bytes cannot be sent.
                classes.add(label=label.decode("utf-8", "replace"), score=score)
        return response

    def _regress(self, request: Any) -> Any:
        response = regression_pb2.RegressionResponse()
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        with self._handle(request) as handle:
            examples = serialized_examples(request.input)
            values = inference.regress(handle.runner, name, examples)
            _fill(response.model_spec, handle, name)
        for value in values:
            response.result.regressions.add(value=value)
        return response

    def _multi(self, request: Any) -> Any:
        response = inference_pb2.MultiInferenceResponse()
        if not request.tasks:
            raise invalid("Inference request must have at least one task")
        for task in request.tasks:
            result = response.results.add()
            if task.model_spec.name != request.tasks[0].model_spec.name:
                raise invalid(
                    "All ModelSpecs in a MultiInferenceRequest must access the same "
                    "model name."
                )
            if task.method_name == inference.CLASSIFY:
                answer = self._classify(_task_request(task, request, "Classification"))
                result.classification_result.CopyFrom(answer.result)
            elif task.method_name == inference.REGRESS:
                answer = self._regress(_task_request(task, request, "Regression"))
                result.regression_result.CopyFrom(answer.result)
            else:
                raise RequestError(
                    Code.UNIMPLEMENTED,
                    f"Unsupported signature method_name: {task.method_name}",
                )
            result.model_spec.CopyFrom(answer.model_spec)
        return response

    def _metadata(self, request: Any) -> Any:
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != _METADATA:
                raise invalid(f"Metadata field {field} is not supported")
        definitions = get_model_metadata_pb2.SignatureDefMap()
        with self._handle(request) as handle:
            for name, signature in handle.runner.signatures.items():
                definitions.signature_def[name].CopyFrom(signature)
            _fill(response.model_spec, handle)
        response.metadata[_METADATA].Pack(definitions)
        return response


def _task_request(task: Any, request: Any, kind: str) -> Any:
    module = classification_pb2 if kind == "Classification" else regression_pb2
    message = getattr(module, f"{kind}Request")(input=request.input)
    message.model_spec.CopyFrom(task.model_spec)
    return message


class ModelService(_Service, model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns the states of the versions of a model."""
        return self._answer(
            "GetModelStatus", request, context, lambda: self._status(request)
        )

    def _status(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus.State
        statuses = self._models.statuses(_spec(request.model_spec))
        for version, status in statuses.items():
            entry = response.model_version_status.add(
                version=version, state=states.Value(status.state)
            )
            entry.status.error_code = status.code.value
            entry.status.error_message = status.message
        return response
