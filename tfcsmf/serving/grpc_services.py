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
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfcsmf.serving import example_inference, inference
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
    8: "scomplex_val",
    9: "int64_val",
    10: "bool_val",
    14: "half_val",
    17: "int_val",
    18: "dcomplex_val",
    19: "half_val",
    22: "uint32_val",
    23: "uint64_val",
}
# What such a field holds of a type it does not hold as it is.
_PARTS = {8: np.float32, 14: np.uint16, 18: np.float64, 19: np.uint16}
# Longest text of an error: it travels in a header.
_MAX_DETAILS = 1024


def to_proto(value: np.ndarray, dtype: int) -> Any:
    """Returns a tensor as TensorFlow Serving sends it: in the field of its type."""
    field = _FIELDS.get(dtype)
    if field is None:
        return tf.make_tensor_proto(value, tf.as_dtype(dtype))
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in value.shape:
        proto.tensor_shape.dim.add().size = size
    values = value.ravel()
    if dtype in _PARTS:
        values = values.view(_PARTS[dtype])
    getattr(proto, field).extend(values.tolist())
    return proto


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
            if hasattr(request, "model_spec") and (
                request.model_spec.name in self._models.names
            ):
                served = request.model_spec.name
            return respond()
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
    text = error.message
    if len(text) > _MAX_DETAILS:
        text = text[:_MAX_DETAILS] + "...TRUNCATED"
    context.abort(_CODES[error.code.value], text)
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
            outputs, types = inference.predict(
                handle.runner, name, request.inputs, list(request.output_filter)
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
            rows = example_inference.classify(handle.runner, name, examples)
            _fill(response.model_spec, handle, name)
        _add_rows(response.result, rows)
        return response

    def _regress(self, request: Any) -> Any:
        response = regression_pb2.RegressionResponse()
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        with self._handle(request) as handle:
            examples = serialized_examples(request.input)
            values = example_inference.regress(handle.runner, name, examples)
            _fill(response.model_spec, handle, name)
        _add_values(response.result, values)
        return response

    def _multi(self, request: Any) -> Any:
        response = inference_pb2.MultiInferenceResponse()
        first = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self._models.handle(_spec(first)) as handle:
            for task in request.tasks:
                if not task.model_spec.name:
                    raise invalid("Found ModelSpec with an empty model name.")
                if task.model_spec.name != first.name:
                    raise invalid(
                        "All ModelSpecs in a MultiInferenceRequest must access the "
                        "same model name."
                    )
            results = example_inference.infer(
                handle.runner,
                [(t.model_spec.signature_name, t.method_name) for t in request.tasks],
                serialized_examples(request.input),
            )
            for task, result in zip(request.tasks, results, strict=True):
                entry = response.results.add()
                name = task.model_spec.signature_name or DEFAULT_SIGNATURE
                _fill(entry.model_spec, handle, name)
                if task.method_name == inference.CLASSIFY:
                    _add_rows(entry.classification_result, result)
                else:
                    _add_values(entry.regression_result, result)
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
                # Word for word what TensorFlow Serving says.
                raise invalid(f"Metadata field %s is not supported{field}")
        definitions = get_model_metadata_pb2.SignatureDefMap()
        with self._handle(request) as handle:
            for name, signature in handle.runner.signatures.items():
                definitions.signature_def[name].CopyFrom(signature)
            _fill(response.model_spec, handle)
        response.metadata[_METADATA].Pack(definitions)
        return response


def _add_rows(result: Any, rows: list[list[tuple[bytes, float]]]) -> None:
    for row in rows:
        classes = result.classifications.add().classes
        for label, score in row:
            # A string field: other bytes cannot be sent.
            classes.add(label=label.decode("utf-8", "replace"), score=score)


def _add_values(result: Any, values: list[float]) -> None:
    for value in values:
        result.regressions.add(value=value)


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
