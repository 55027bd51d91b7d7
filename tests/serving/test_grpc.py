"""TensorFlow Serving's gRPC services, after the cases it publishes."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
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


@pytest.fixture(scope="module")
def channel(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request_of(value=2.0, name="half", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for field, setting in spec.items():
        if field == "version":
            request.model_spec.version.value = setting
        else:
            setattr(request.model_spec, field, setting)
    proto = request.inputs["x"]
    proto.dtype = tf.float32.as_datatype_enum
    proto.float_val.append(value)
    proto.tensor_shape.dim.add().size = 1
    return request


@pytest.mark.parametrize("spec", [{}, {"version": 123}, {"version_label": "stable"}])
def test_predict(stub, spec):
    request = request_of(**spec)
    request.output_filter.append("y")
    result = stub.Predict(request, 5.0)
    assert list(result.outputs) == ["y"]
    assert result.outputs["y"].dtype == tf.float32.as_datatype_enum
    assert list(result.outputs["y"].float_val) == [3.0]
    assert result.model_spec.name == "half"
    assert result.model_spec.signature_name == "serving_default"
    assert result.model_spec.version.value == 123


def test_all_kinds_of_tensors(stub):
    values = {
        "i8": np.int8([-3]),
        "u8": np.uint8([200]),
        "i16": np.int16([-300]),
        "i64": np.int64([-(2**63)]),
        "u32": np.uint32([2**32 - 1]),
        "u64": np.uint64([2**64 - 1]),
        "flag": np.array([True]),
    }
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "mixed", "kinds"
    for name, value in values.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    outputs = stub.Predict(request, 5.0).outputs
    for name, value in values.items():
        got = tf.make_ndarray(outputs[name])
        assert got.dtype == value.dtype and got.tolist() == value.tolist()
    # Types without a field of their own, and strings that are no text.
    request = request_of(name="mixed", signature_name="to_half")
    assert tf.make_ndarray(stub.Predict(request, 5.0).outputs["x"]).dtype == np.float16
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "mixed", "echo"
    request.inputs["s"].CopyFrom(tf.make_tensor_proto([b"\xff\x00"]))
    assert list(stub.Predict(request, 5.0).outputs["s"].string_val) == [b"\xff\x00"]


def with_example(message, signature, value=2.0):
    message.model_spec.name, message.model_spec.signature_name = "half", signature
    example = message.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(value)
    return message


def test_classify_and_regress(stub):
    request = with_example(
        classification_pb2.ClassificationRequest(), "classify_x_to_y"
    )
    result = stub.Classify(request, 5.0)
    assert [c.score for c in result.result.classifications[0].classes] == [3.0]
    assert result.model_spec.signature_name == "classify_x_to_y"
    request = with_example(regression_pb2.RegressionRequest(), "regress_x_to_y")
    assert stub.Regress(request, 5.0).result.regressions[0].value == 3.0


def test_multi_inference(stub):
    request = inference_pb2.MultiInferenceRequest()
    for kind in ("regress", "classify"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "half", f"{kind}_x_to_y"
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(2.0)
    regressed, classified = stub.MultiInference(request, 5.0).results
    assert regressed.regression_result.regressions[0].value == 3.0
    classes = classified.classification_result.classifications[0].classes
    assert classes[0].score == 3.0


def test_metadata_and_status(stub, channel):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "half"
    request.metadata_field.append("signature_def")
    result = stub.GetModelMetadata(request, 5.0)
    assert result.model_spec.version.value == 123
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert result.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].outputs["y"].name == "y:0"
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    (status,) = models.GetModelStatus(request, 5.0).model_version_status
    assert (status.version, status.status.error_code) == (123, 0)
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    request.model_spec.name = "none"
    with pytest.raises(
        grpc.RpcError, match="Could not find any versions of model none"
    ):
        models.GetModelStatus(request, 5.0)


def wrong_type():
    request = request_of()
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(["text"]))
    return request


def damaged():
    request = request_of()
    request.inputs["x"].tensor_shape.dim[0].size = 5
    request.inputs["x"].ClearField("float_val")
    request.inputs["x"].tensor_content = b"abc"
    return request


def changed(change):
    request = request_of()
    change(request)
    return request


ERRORS = [
    (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (request_of(name=""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    (
        request_of(name="none"),
        "NOT_FOUND",
        "Servable not found for request: Latest(none)",
    ),
    (request_of(version=9), "NOT_FOUND", "request: Specific(half, 9)"),
    (request_of(version_label="x"), "INVALID_ARGUMENT", "version label: x"),
    (
        request_of(signature_name="none"),
        "FAILED_PRECONDITION",
        'Serving signature key "none" not found.',
    ),
    (
        changed(lambda r: r.inputs["z"].CopyFrom(r.inputs["x"])),
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: "
        "{z}. Missing but required: {}.",
    ),
    (
        changed(lambda r: r.inputs.clear()),
        "INVALID_ARGUMENT",
        "input size does not match signature: 0!=1",
    ),
    (
        changed(lambda r: r.output_filter.append("q")),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: q Outputs expected to be in the "
        "set {y}.",
    ),
    (
        changed(lambda r: r.output_filter.extend(["y", "y"])),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    (wrong_type(), "INVALID_ARGUMENT", "string"),
    (damaged(), "INVALID_ARGUMENT", "tensor parsing error: x"),
]


@pytest.mark.parametrize(("request_", "code", "text"), ERRORS)
def test_errors(stub, request_, code, text):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_, 5.0)
    assert caught.value.code().name == code
    assert text in caught.value.details()
    assert stub.Predict(request_of(), 5.0).outputs["y"].float_val[0] == 3.0


def test_metadata_fields_are_checked(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "half"
    with pytest.raises(grpc.RpcError, match="must specify at least one metadata_field"):
        stub.GetModelMetadata(request, 5.0)
    request.metadata_field.append("weights")
    with pytest.raises(
        grpc.RpcError, match="Metadata field %s is not supportedweights"
    ):
        stub.GetModelMetadata(request, 5.0)


def test_too_large_messages_are_refused(stub):
    request = request_of()
    request.inputs["x"].float_val.extend([0.0] * 2**19)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, 5.0)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
