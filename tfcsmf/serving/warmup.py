"""Warm-up requests: written at export, run before a version is served.

The file is TensorFlow Serving's own: records of `PredictionLog` in
`assets.extra/tf_serving_warmup_requests`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfcsmf.serving import example_inference, inference
from tfcsmf.serving.examples import serialized_examples
from tfcsmf.serving.status import Code, RequestError, invalid

FILE = "assets.extra/tf_serving_warmup_requests"
# TensorFlow Serving refuses to load a model with more.
MAX_RECORDS = 1000


def write_warmup(folder: Path, signatures: Mapping[str, Any]) -> None:
    """Writes one request of one row per signature.

    Values are "" and 0, and 1 for dimensions of unknown size; weights, which may
    not all be 0 in a real request, do no harm as 0 either.

    Args:
      folder: the SavedModel.
      signatures: concrete functions by signature name, as given to
        `tf.saved_model.save`.
    """
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, function in signatures.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = name
            for argument, spec in function.structured_input_signature[1].items():
                shape = [1 if size is None else size for size in spec.shape.as_list()]
                empty = b"" if spec.dtype == tf.string else 0
                value = np.full(shape, empty, spec.dtype.as_numpy_dtype)
                request.inputs[argument].CopyFrom(
                    tf.make_tensor_proto(value, spec.dtype)
                )
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def read_warmup(folder: Path) -> Iterator[Any]:
    """Yields the records of a SavedModel; none where there is no file.

    Raises:
      RequestError: if there are too many.
      Exception: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return
    for count, record in enumerate(tf.data.TFRecordDataset(str(path))):
        if count >= MAX_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at "
                f"{path}"
            )
        yield prediction_log_pb2.PredictionLog.FromString(record.numpy())


def run_warmup(model: inference.Runner, folder: Path) -> int:
    """Runs the warm-up requests of a SavedModel.

    Returns:
      How many there were.

    Raises:
      Exception: the first that fails, for such a model should not be served.
    """
    count = 0
    for log in read_warmup(folder):
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            request = log.predict_log.request
            inference.predict(
                model,
                request.model_spec.signature_name,
                request.inputs,
                list(request.output_filter),
            )
        elif kind in ("classify_log", "regress_log"):
            request = getattr(log, kind).request
            run = getattr(example_inference, kind.removesuffix("_log"))
            run(
                model,
                request.model_spec.signature_name,
                serialized_examples(request.input),
            )
        elif kind == "multi_inference_log":
            request = log.multi_inference_log.request
            example_inference.infer(
                model,
                [(t.model_spec.signature_name, t.method_name) for t in request.tasks],
                serialized_examples(request.input),
            )
        elif kind:
            number = prediction_log_pb2.PredictionLog.DESCRIPTOR.fields_by_name[kind]
            raise RequestError(
                Code.UNIMPLEMENTED,
                f"Unsupported log_type for warmup: {number.number}",
            )
        count += 1
    return count
