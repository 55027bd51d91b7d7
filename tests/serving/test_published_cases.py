"""Cases after TensorFlow Serving's published tests and source, in data of our own.

The newest published ones: json_tensor, http_rest_api_handler, predict, classifier,
regressor and multi_inference. What `test_rest` and `test_malformed` ask over HTTP is
not repeated here.
"""

import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfcsmf.serving.json_answers import (
    write_classification,
    write_predict,
    write_regression,
)
from tfcsmf.serving.json_examples import read_examples
from tfcsmf.serving.json_tensors import read_predict
from tfcsmf.serving.status import RequestError

FLOAT, DOUBLE, INT, STRING, LONG, BOOL = 1, 2, 3, 7, 9, 10
BIG = "1.7976931348623157e308"

# Types by input, the value of "instances" or "inputs", tensors (shape, values).
READ = [
    ({"a": INT}, "instances", "[[1,2],[3,4],[5,6]]", {"a": ((3, 2), range(1, 7))}),
    ({"a": INT}, "inputs", "[[[1,2],[3,4]]]", {"a": ((1, 2, 2), [1, 2, 3, 4])}),
    ({"a": INT}, "inputs", '{"a": [[7]]}', {"a": ((1, 1), [7])}),
    ({"a": INT}, "inputs", '{"a": 7, "b": "?"}', {"a": ((), [7])}),
    ({"a": INT}, "inputs", "[[], []]", {"a": ((2, 0), [])}),
    ({"a": FLOAT}, "instances", "[1, 2.5, -0.007]", {"a": ((3,), [1, 2.5, -0.007])}),
    ({"a": DOUBLE}, "instances", "[1, 0.1]", {"a": ((2,), [1.0, 0.1])}),
    # Rounded, infinite or zero: no error since 2021.
    ({"a": FLOAT}, "instances", "[16777217]", {"a": ((1,), [16777216])}),
    ({"a": FLOAT}, "instances", "[1435774380]", {"a": ((1,), [1435774336])}),
    ({"a": FLOAT}, "instances", "[1435774380.0]", {"a": ((1,), [1435774336])}),
    ({"a": FLOAT}, "instances", f"[{BIG}]", {"a": ((1,), [np.inf])}),
    ({"a": FLOAT}, "inputs", f"[-{BIG}, 1e39]", {"a": ((2,), [-np.inf, np.inf])}),
    ({"a": FLOAT}, "inputs", "[2.3e-308, -2.3e-308]", {"a": ((2,), [0.0, -0.0])}),
    ({"a": DOUBLE}, "inputs", "9007199254740993", {"a": ((), [2.0**53])}),
    ({"a": DOUBLE}, "inputs", "18446744073709551615", {"a": ((), [2.0**64])}),
    ({"a": FLOAT}, "inputs", "[18446744073709551616]", {"a": ((1,), [2.0**64])}),
    ({"a": FLOAT}, "inputs", "[NaN, -Inf]", {"a": ((2,), [np.nan, -np.inf])}),
    ({"a": LONG}, "inputs", "-9223372036854775808", {"a": ((), [-(2**63)])}),
    ({"a": BOOL}, "inputs", "[true, false]", {"a": ((2,), [True, False])}),
    ({"a": STRING}, "instances", '[{"b64": "aXRlbQ=="}]', {"a": ((1,), [b"item"])}),
    ({"a": STRING}, "instances", '[[{"b64": "aXRlbQ"}]]', {"a": ((1, 1), [b"item"])}),
    ({"a": STRING}, "inputs", '{"b64": "aXRl bQ.."}', {"a": ((), [b"item"])}),
    ({"a": STRING}, "inputs", '{"a": {"b64": ""}}', {"a": ((), [b""])}),
    ({"b64": STRING}, "inputs", '{"b64": ["x"]}', {"b64": ((1,), [b"x"])}),
    (
        {"a": INT, "b": STRING, "c": FLOAT},
        "instances",
        '[{"c": [NaN], "a": [[1],[2]], "b": "x"}, '
        '{"a": [[3],[4]], "b": {"b64": "eQ=="}, "c": [Infinity]}]',
        {
            "a": ((2, 2, 1), [1, 2, 3, 4]),
            "b": ((2,), [b"x", b"y"]),
            "c": ((2, 1), [np.nan, np.inf]),
        },
    ),
    (
        {"a": INT, "b": STRING},
        "inputs",
        '{"a": [[1, 2]], "b": {"b64": "aXRlbQ=="}}',
        {"a": ((1, 2), [1, 2]), "b": ((), [b"item"])},
    ),
]


@pytest.mark.parametrize(("types", "form", "value", "expected"), READ)
def test_json_becomes_tensors(types, form, value, expected):
    body = f'{{"signature_name": "s", "{form}": {value}}}'
    request = read_predict(body.encode(), lambda name: types if name == "s" else {})
    assert request.row == (form == "instances")
    assert request.inputs.keys() == expected.keys()
    for name, (shape, values) in expected.items():
        got = request.inputs[name]
        assert got.shape == shape
        if types[name] == STRING:
            assert got.ravel().tolist() == values
        else:
            assert got.dtype == tf.as_dtype(types[name])
            wanted = np.array(list(values), got.dtype)
            np.testing.assert_array_equal(got.ravel(), wanted)
            np.testing.assert_array_equal(np.signbit(got.ravel()), np.signbit(wanted))


ROW = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "
KEY = "Failed to process element: {} key: {} of 'instances' list. Error: " + (
    "INVALID_ARGUMENT: "
)
TYPE = "JSON Value: {} Type: {} is not of expected type: {}"
ONE, TWO = {"a": INT}, {"a": INT, "b": STRING}
# Types, body, the whole error.
REFUSED = [
    (ONE, "", "JSON Parse error: The document is empty"),
    (ONE, "7", "JSON Value: 7 Is not object"),
    (ONE, "1e-5", "JSON Value: 1e-05 Is not object"),
    (ONE, "[0.00001, 1e30]", "JSON Value: [\n    0.00001,\n    1e30\n] Is not object"),
    (
        ONE,
        "[[], {}, null]",
        "JSON Value: [\n    [],\n    {},\n    null\n] Is not object",
    ),
    (ONE, '["\\u001f/"]', 'JSON Value: [\n    "\\u001F/"\n] Is not object'),
    # Nothing follows what RapidJSON cannot write.
    (ONE, "[1, NaN, 2]", "JSON Value: [\n    1,\n     Is not object"),
    (
        ONE,
        '{"signature_name": 5}',
        'JSON Value: {\n    "signature_name": 5\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    ({}, '{"inputs": 1}', "Failed to get input map for signature: DEFAULT"),
    ({}, '{"signature_name": "s"}', "Failed to get input map for signature: s"),
    (ONE, "{}", "Missing 'inputs' or 'instances' key"),
    (
        ONE,
        '{"inputs": [], "instances": []}',
        'JSON Value: {\n    "inputs": [],\n    "instances": []\n} Not formatted '
        "correctly expecting only one of 'inputs' or 'instances' keys to exist ",
    ),
    (
        ONE,
        '{"instances": {}}',
        "JSON Value: {\n    \"instances\": {}\n} Expecting 'instances' to be an "
        "list/array",
    ),
    (
        ONE,
        '{"instances": []}',
        "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
    ),
    (
        ONE,
        '{"instances": [[1,2],[3]]}',
        ROW.format(1) + "Expecting tensor size: 2 but got: 1",
    ),
    (
        ONE,
        '{"instances": [[1,2],[[3,4]]]}',
        ROW.format(1) + "Expecting shape [2] but got: [1,2]",
    ),
    (
        ONE,
        '{"instances": [1, [1]]}',
        ROW.format(1) + "Expecting shape [] but got: [1]",
    ),
    (
        ONE,
        '{"instances": [[1, 2], ["x", "y"]]}',
        ROW.format(1) + TYPE.format('"x"', "String", "int32"),
    ),
    (
        ONE,
        '{"instances": [[1, [2]]]}',
        ROW.format(0) + "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        ONE,
        '{"instances": [[[1], 2]]}',
        ROW.format(0) + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. "
        "Expected at level: 2",
    ),
    (
        ONE,
        '{"instances": [[[1, 2], [3]]]}',
        ROW.format(0)
        + "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        ONE,
        '{"instances": [1, {"a": 2}]}',
        "Expecting value/list but got object at item 1 of input list",
    ),
    (
        ONE,
        '{"instances": [{"a": 1}, 2]}',
        "Expecting object but got list at item 1 of input list",
    ),
    (
        ONE,
        '{"instances": [{"a": 1}, {"z": 2}]}',
        KEY.format(1, "z") + "JSON object: does not have named input: z",
    ),
    (
        TWO,
        '{"instances": [{"a": 1}]}',
        "Failed to process element: 0 of 'instances' list. JSON object: "
        '{\n    "a": 1\n} keys must be equal to: a,b',
    ),
    (
        TWO,
        '{"instances": [{"a": [1], "b": "x"}, {"a": [[1]], "b": "y"}]}',
        KEY.format(1, "a") + "Expecting shape [1] but got: [1,1]",
    ),
    (
        TWO,
        '{"instances": [{"b": {"b64": 5}, "a": 1}]}',
        KEY.format(0, "b") + 'JSON Value: {\n    "b64": 5\n} not formatted correctly '
        "for base64 data",
    ),
    (
        TWO,
        '{"instances": [1]}',
        "instances is a plain list, but expecting list of objects as multiple input "
        "tensors required as per tensorinfo_map",
    ),
    (
        TWO,
        '{"inputs": [1]}',
        "inputs is a plain value/list, but expecting an object as multiple input "
        "tensors required as per tensorinfo_map",
    ),
    (TWO, '{"inputs": {"a": 1}}', "Missing named input: b in 'inputs' object."),
    ({"a": STRING}, '{"inputs": {"b64": "a"}}', "Unable to base64 decode"),
    ({"a": STRING}, '{"inputs": {"b64": "aXRlbQ="}}', "Unable to base64 decode"),
    ({"a": STRING}, '{"inputs": 1}', TYPE.format("1", "Number", "string")),
    (ONE, '{"inputs": 1.0}', TYPE.format("1.0", "Number", "int32")),
    (ONE, '{"inputs": 2147483648}', TYPE.format("2147483648", "Number", "int32")),
    (
        {"a": LONG},
        '{"inputs": 18446744073709551616}',
        TYPE.format("1.84467441e+19", "Number", "int64"),
    ),
    ({"a": BOOL}, '{"inputs": 1}', TYPE.format("1", "Number", "bool")),
    ({"a": FLOAT}, '{"inputs": false}', TYPE.format("false", "False", "float")),
    (
        {"a": 8},
        '{"inputs": [0.2]}',
        "Conversion of JSON Value: 0.2 to type: complex64",
    ),
]


@pytest.mark.parametrize(("types", "body", "text"), REFUSED)
def test_refused_json_gets_the_very_text(types, body, text):
    with pytest.raises(RequestError) as caught:
        read_predict(body.encode(), lambda name: types)
    assert caught.value.message == text


# "context" and "examples", then the features of each message.
EXAMPLES = [
    (
        "",
        '[{"n": ["a", "b"], "r": [8.0, 9.5], "age": 20}, {"n": "c"}]',
        [
            {"n": ("bytes", [b"a", b"b"]), "r": ("float", [8, 9.5])}
            | {"age": ("int64", [20])},
            {"n": ("bytes", [b"c"])},
        ],
    ),
    (
        '{"query": "pizza"}',
        '[{"n": ["a", {"b64": "aXRlbQ=="}], "mix": [3, true, false]}, {}]',
        [
            {"n": ("bytes", [b"a", b"item"]), "mix": ("int64", [3, 1, 0])}
            | {"query": ("bytes", [b"pizza"])},
            {"query": ("bytes", [b"pizza"])},
        ],
    ),
    (
        "",
        f'[{{"r": [0.5, Infinity, -Inf, {BIG}, 18446744073709551616]}}]',
        [{"r": ("float", [0.5, np.inf, -np.inf, np.inf, 2.0**64])}],
    ),
    ("", '[{"empty": []}]', [{"empty": (None, [])}]),
]


@pytest.mark.parametrize(("context", "examples", "expected"), EXAMPLES)
def test_json_becomes_examples(context, examples, expected):
    head = f'"context": {context}, ' if context else ""
    request = read_examples(f'{{{head}"examples": {examples}}}'.encode())
    assert len(request.examples) == len(expected)
    for serialized, features in zip(request.examples, expected, strict=True):
        got = tf.train.Example.FromString(serialized).features.feature
        assert got.keys() == features.keys()
        for name, (kind, values) in features.items():
            assert got[name].WhichOneof("kind") == (kind and f"{kind}_list")
            if kind:
                assert list(getattr(got[name], f"{kind}_list").value) == values


FEATURE = "Feature: n has element with unexpected JSON type: "
NO_EXAMPLES = [
    ('{"signature_name": ["s"]}', "'signature_name' key must be a string value."),
    ("{}", "JSON Value: {} When method is classify, key 'examples' is expected and"),
    ('{"context": [1]}', "Example must be JSON object but got JSON Array"),
    ('{"examples": 1}', "} Expecting 'examples' value to be an list/array"),
    ('{"examples": []}', "} 'examples' value is an empty array"),
    ('{"examples": ["x"]}', "Example must be JSON object but got JSON String"),
    ('{"examples": [{"n": [10, null]}]}', FEATURE + "Null"),
    ('{"examples": [{"n": [10, {"z": 1}]}]}', FEATURE + "Object"),
    ('{"examples": [{"n": {"b64": 1}}]}', FEATURE + "Object"),
    ('{"examples": [{"n": [[10]]}]}', FEATURE + "Array"),
    (
        '{"examples": [{"n": [10, 10.0]}]}',
        "Unexpected element type in feature: n expecting type: int64",
    ),
    (
        '{"examples": [{"n": ["x", true]}]}',
        "Unexpected element type in feature: n expecting type: bytes",
    ),
    (
        '{"examples": [{"n": [0.5, "x"]}]}',
        "Unexpected element type in feature: n expecting type: float",
    ),
    (
        '{"examples": [{"n": [1, 18446744073709551603]}]}',
        "Feature: n has uint64_t element. Only int64_t is supported.",
    ),
    ('{"examples": [{"n": {"b64": "!"}}]}', "Unable to base64 decode"),
]


@pytest.mark.parametrize(("body", "text"), NO_EXAMPLES)
def test_refused_examples(body, text):
    with pytest.raises(RequestError) as caught:
        read_examples(body.encode())
    assert text in caught.value.message


MANY = {
    "scalar": (DOUBLE, np.array([8.0, 9.0])),
    "floats": (FLOAT, np.float32([[1], [2]])),
    "ints": (INT, np.int32([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])),
    "texts": (STRING, np.array([[b"a"], [b"b"]], object)),
    "texts_bytes": (STRING, np.array([[b"item"], [b""]], object)),
}


def written(tensors, row):
    outputs = {name: tensor for name, (_, tensor) in tensors.items()}
    return write_predict(outputs, {name: t for name, (t, _) in tensors.items()}, row)


def test_tensors_become_json():
    rows = json.loads(written(MANY, row=True))["predictions"]
    assert rows[1] == {
        "scalar": 9.0,
        "floats": [2.0],
        "ints": [[5, 6], [7, 8]],
        "texts": ["b"],
        "texts_bytes": [{"b64": ""}],
    }
    columns = json.loads(written(MANY, row=False))["outputs"]
    assert columns["scalar"] == [8.0, 9.0]
    assert columns["texts_bytes"] == [[{"b64": "aXRlbQ=="}], [{"b64": ""}]]
    single = {"ints": MANY["ints"]}
    assert json.loads(written(single, row=True)) == {
        "predictions": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    }
    numbers = np.float32([9e6, 999999, 3e-5, np.nan, np.inf, -np.inf, 3, 1 / 3])
    assert b"[9e+06, 999999.0, 3e-05, NaN, Infinity, -Infinity, 3.0, 0.333333343]" in (
        written({"x": (FLOAT, numbers)}, row=True)
    )


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        (
            {"x": (8, np.complex64([1, 2]))},
            "Failed to write JSON value for tensor type: complex64",
        ),
        ({"x": (INT, np.int32(1))}, "Tensor name: x has no shape information "),
        (
            {"x": (INT, np.zeros((0, 2), np.int32)), "y": (INT, np.int32([1]))},
            "Tensor name: y has inconsistent batch size: 1 expecting: 0",
        ),
    ],
)
def test_what_cannot_be_written(tensors, text):
    with pytest.raises(RequestError) as caught:
        written(tensors, row=True)
    assert caught.value.message == text


def test_results_become_json():
    rows = [[(b"car", 0.2), (b"bike", 0.7)], [(b"bus", 1.0)]]
    expected = [[["car", 0.2], ["bike", 0.7]], [["bus", 1.0]]]
    assert json.loads(write_classification(rows)) == {"results": expected}
    assert b"[0.2, Infinity, 1.0, NaN]" in write_regression([0.2, np.inf, 1.0, np.nan])
    for write, what in (
        (write_classification, "Classification"),
        (write_regression, "Regression"),
    ):
        with pytest.raises(RequestError, match=f"empty {what}Results to JSON"):
            write([])


@pytest.fixture(scope="module")
def stub(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def tensor(*sizes, dtype=FLOAT, **values):
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    return proto


def predict_request(proto, signature="", name="x"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(proto)
    return request


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (tensor(2, float_val=[2, 4]), [3, 4]),
        (tensor(3, float_val=[2, 4]), [3, 4, 4]),  # the last one counts for the rest
        (tensor(1, float_val=[2, 4]), [3]),  # what is too much is left out
        (tensor(2), [2, 2]),
        (tensor(float_val=[2]), [3]),
        (tensor(0), []),
        (tensor(1, tensor_content=b"\0\0\0@"), [3]),
    ],
)
def test_messages_become_tensors(stub, proto, expected):
    outputs = stub.Predict(predict_request(proto), 5.0).outputs
    assert list(outputs["y"].float_val) == expected


def inference_request(message, signature, *values, **spec):
    message.model_spec.name = spec.get("name", "half")
    message.model_spec.signature_name = signature
    for value in values:
        example = message.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return message


def classification(signature, *values, **spec):
    message = classification_pb2.ClassificationRequest()
    return inference_request(message, signature, *values, **spec)


def regression(signature, *values, **spec):
    message = regression_pb2.RegressionRequest()
    return inference_request(message, signature, *values, **spec)


def multi(*tasks, values=(2.0,), name="half"):
    request = inference_pb2.MultiInferenceRequest()
    for task in tasks:
        signature, method, *other = task
        entry = request.tasks.add(method_name="tensorflow/serving/" + method)
        entry.model_spec.name = other[0] if other else name
        entry.model_spec.signature_name = signature
    for value in values:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return request


def test_several_tasks_are_one_run_of_one_version(stub):
    request = multi(
        ("regress_x_to_y", "regress"),
        ("classify_x_to_y", "classify"),
        ("regress_x_to_y2", "regress"),
        values=(2.0, 20.0),
    )
    one, two, three = stub.MultiInference(request, 5.0).results
    assert [r.value for r in one.regression_result.regressions] == [3, 12]
    rows = two.classification_result.classifications
    assert [[c.score for c in row.classes] for row in rows] == [[3], [12]]
    assert [r.value for r in three.regression_result.regressions] == [4, 13]
    for result, signature in ((one, "regress_x_to_y"), (two, "classify_x_to_y")):
        spec = result.model_spec
        assert (spec.name, spec.signature_name) == ("half", signature)
        assert spec.version.value == 123


R = ("regress_x_to_y", "regress")
METHOD = "Expected {} signature method_name to be tensorflow/serving/{}. Was: "
REGRESS_METHOD = METHOD.format("regression", "regress") + "tensorflow/serving/"
GRPC_ERRORS = [
    ("Classify", classification_pb2.ClassificationRequest(), 3, "Missing ModelSpec"),
    ("Regress", regression("", name="gone"), 5, "request: Latest(gone)"),
    ("Regress", regression("none", 1), 3, "No signature was found with the name: none"),
    ("Regress", regression("none"), 3, "No signature was found with the name: none"),
    ("Regress", regression(R[0]), 3, "Input is empty."),
    ("Classify", classification("classify_x_to_y"), 3, "Input is empty."),
    ("Regress", regression("", 1), 3, REGRESS_METHOD + "predict"),
    ("Regress", regression("classify_x_to_y", 1), 3, REGRESS_METHOD + "classify"),
    (
        "Classify",
        classification(R[0], 1),
        3,
        METHOD.format("classification", "classify"),
    ),
    ("MultiInference", multi(), 3, "ModelSpec has no name specified."),
    ("MultiInference", multi(R, name="gone"), 5, "request: Latest(gone)"),
    ("MultiInference", multi(R, values=()), 3, "Input is empty."),
    (
        "MultiInference",
        multi(("none", "regress")),
        3,
        "Requested signature not found in model graph: none",
    ),
    (
        "MultiInference",
        multi(R, R),
        3,
        "Duplicate evaluation of signature: regress_x_to_y",
    ),
    (
        "MultiInference",
        multi(R, (*R, "gone")),
        3,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    (
        "MultiInference",
        multi(R, (*R, "")),
        3,
        "Found ModelSpec with an empty model name.",
    ),
    (
        "MultiInference",
        multi(("", "predict")),
        12,
        "Unsupported signature method_name: tensorflow/serving/predict",
    ),
    (
        "MultiInference",
        multi(("classify_x_to_y", "regress")),
        3,
        REGRESS_METHOD + "classify",
    ),
    (
        "Predict",
        predict_request(tensor(1), name="z"),
        3,
        "input tensor alias not found in signature: z. Inputs expected to be in the "
        "set {x}.",
    ),
    # The signature is looked up before the tensor is read.
    (
        "Predict",
        predict_request(tensor(1, dtype=0), "none"),
        9,
        'Serving signature key "none" not found.',
    ),
    ("Predict", predict_request(tensor(1, dtype=0)), 3, "tensor parsing error: x"),
    ("Predict", predict_request(tensor(-1)), 3, "tensor parsing error: x"),
    ("Predict", predict_request(tensor(2**40)), 3, "tensor parsing error: x"),
    (
        "Predict",
        predict_request(tensor(1, tensor_content=b"abcdefgh")),
        3,
        "tensor parsing error: x",
    ),
    (
        "Predict",
        predict_request(tensor(1, dtype=STRING)),
        3,
        "Expects arg[0] to be float but string is provided",
    ),
    (
        "Predict",
        predict_request(tensor(1, dtype=DOUBLE)),
        3,
        "Expects arg[0] to be float but double is provided",
    ),
    ("Regress", regression("regress_x", 1), 3, "Expects arg[0] to be float but string"),
    # Longer texts would not fit into the headers they travel in.
    ("Predict", predict_request(tensor(1), "s" * 20_000), 9, "s" * 999 + "...TRUNC"),
]


@pytest.mark.parametrize(("method", "request_", "code", "text"), GRPC_ERRORS)
def test_grpc_errors(stub, method, request_, code, text):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_, 5.0)
    assert caught.value.code().value[0] == code
    assert text in caught.value.details()


@pytest.mark.parametrize(
    ("dtype", "field", "values", "sent"),
    [
        (tf.float16, "half_val", [1.0, -2.0], [15360, 49152]),
        (tf.bfloat16, "half_val", [1.0], [16256]),
        (tf.complex64, "scomplex_val", [1 + 2j], [1, 2]),
        (tf.uint16, "int_val", [65535], [65535]),
    ],
)
def test_answers_fill_the_field_of_their_type(dtype, field, values, sent):
    from tfcsmf.serving.grpc_services import to_proto

    array = tf.constant(values, dtype).numpy()
    proto = to_proto(array, dtype.as_datatype_enum)
    assert list(getattr(proto, field)) == sent
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def test_metrics_have_the_names_and_limits_of_dashboards(running):
    running.post("half:predict", {"instances": [1]})
    running.post("half:predict", b"{")
    running.post("gone:predict", {"instances": [1]})
    page = running.get("/monitoring/prometheus/metrics").text
    labels = 'model_name="half"'
    count = f":tensorflow:serving:request_count{{{labels},status="
    assert count + '"OK"}' in page and count + '"INVALID_ARGUMENT"}' in page
    assert "gone" not in page
    bucket = ":tensorflow:serving:request_latency_bucket{"
    lines = [line for line in page.splitlines() if line.startswith(bucket)]
    mine = [x for x in lines if labels in x and 'API="predict"' in x and "REST" in x]
    limits = [line.partition('le="')[2].partition('"')[0] for line in mine]
    assert limits[:3] == ["10", "18", "32.4"] and limits[-1] == "+Inf"
    assert "708235" in limits and len(limits) == 34
