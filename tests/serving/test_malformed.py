"""Malformed requests: TensorFlow Serving's status and text; the server stays up."""

import json
import math

import pytest

MISSING = "Servable not found for request: "
ELEMENT = "Failed to process element: "
PARSE = "JSON Parse error: "
TYPE = " is not of expected type: "


def rows(*values):
    return {"instances": list(values)}


def mixed(instances=None, **column):
    body = {"signature_name": "all"}
    return body | ({"instances": instances} if instances is not None else column)


GOOD = {"ints": [1], "names": "a", "doubles": [1, 2]}
# Method, path below /v1/models/, body, status, part of the error text.
CASES = [
    # Paths and verbs.
    (
        "GET",
        "half:predict",
        None,
        400,
        "Malformed request: GET /v1/models/half:predict",
    ),
    ("POST", "half", b"{}", 400, "Malformed request: POST /v1/models/half"),
    ("POST", "half/metadata", b"{}", 400, "Malformed request: POST"),
    ("PUT", "half:predict", b"{}", 400, "Malformed request: PUT"),
    ("DELETE", "half", None, 400, "Malformed request: DELETE"),
    ("PATCH", "half:predict", b"{}", 400, "Malformed request: PATCH"),
    ("POST", "half:explain", b"{}", 400, "Malformed request: POST"),
    ("POST", "half/version/50:predict", b"{}", 400, "Malformed request: POST"),
    ("POST", "half/versions/HELLO:regress", b"{}", 400, "Malformed request: POST"),
    ("POST", "half/versions/-1:predict", b"{}", 400, "Malformed request: POST"),
    ("POST", "half/versions/1/labels/a:predict", b"{}", 400, "Malformed request: POST"),
    ("POST", "half/label/a:predict", b"{}", 400, "Malformed request: POST"),
    (
        "POST",
        "half/versions/18446744073709551615:predict",
        rows(1),
        400,
        "Failed to convert version: 18446744073709551615 to numeric.",
    ),
    ("GET", "debug/model_name", None, 400, "Malformed request: GET"),
    ("GET", "", None, 400, "Malformed request: GET /v1/models/"),
    # Models, versions, labels, signatures.
    ("POST", "foo:predict", rows(1), 404, MISSING + "Latest(foo)"),
    ("POST", "foo/versions/50:predict", rows(1), 404, MISSING + "Specific(foo, 50)"),
    ("POST", "half/versions/99:predict", rows(1), 404, MISSING + "Specific(half, 99)"),
    ("POST", "half/labels/gone:predict", rows(1), 404, MISSING + "Specific(half, 5)"),
    (
        "POST",
        "half/labels/none:predict",
        rows(1),
        400,
        "Unrecognized servable version label: none",
    ),
    ("GET", "foo", None, 404, "Could not find any versions of model foo"),
    ("GET", "half/versions/9", None, 404, "Could not find version 9 of model half"),
    ("GET", "foo/metadata", None, 404, MISSING + "Latest(foo)"),
    ("GET", "half/labels/none", None, 400, "Unrecognized servable version label: none"),
    (
        "POST",
        "half:predict",
        {"signature_name": "none", "instances": [1]},
        400,
        'Serving signature name: "none" not found in signature def',
    ),
    (
        "POST",
        "half:predict",
        {"signature_name": "odd", "instances": [1]},
        500,
        "Expected prediction signature method_name to be one of",
    ),
    (
        "POST",
        "half:predict",
        {"signature_name": 100},
        400,
        "'signature_name' key must be a string value.",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "__saved_model_init_op", "instances": [1]},
        400,
        "Failed to get input map for signature: __saved_model_init_op",
    ),
    # JSON.
    ("POST", "half:predict", b"", 400, PARSE + "The document is empty"),
    (
        "POST",
        "half:predict",
        b" \n",
        400,
        PARSE + "The document is empty. at offset: 2",
    ),
    ("POST", "half:predict", b"instances = [1, 2]", 400, "Invalid value. at offset: 0"),
    ("POST", "foo:predict", b"{", 400, PARSE + "Missing a name for object member."),
    (
        "POST",
        "half:predict",
        b'{"instances": [1,]}',
        400,
        "Invalid value. at offset: 17",
    ),
    (
        "POST",
        "half:predict",
        b'{"instances": [1}',
        400,
        "Missing a comma or ] after an",
    ),
    (
        "POST",
        "half:predict",
        b'{"instances": [1]',
        400,
        "Missing a comma or } after an",
    ),
    ("POST", "half:predict", b'{"instances" [1]}', 400, "Missing a colon after a name"),
    ("POST", "half:predict", b'{"instances": [1]} x', 400, "must not be followed by"),
    (
        "POST",
        "half:predict",
        b'{"a": "\\q"}',
        400,
        "Invalid escape character in string",
    ),
    ("POST", "half:predict", b'{"a": "\\u00g0"}', 400, "Incorrect hex digit after \\u"),
    ("POST", "half:predict", b'{"a": "\\ud800"}', 400, "The surrogate pair in string"),
    ("POST", "half:predict", b'{"a": "b', 400, "Missing a closing quotation mark"),
    ("POST", "half:predict", b'{"a": 1.}', 400, "Miss fraction part in number."),
    ("POST", "half:predict", b'{"a": 1e}', 400, "Miss exponent in number."),
    ("POST", "half:predict", b'{"a": 1e999}', 400, "Number too big to be stored in"),
    ("POST", "half:predict", b'{"a": ' + b"9" * 5000 + b"}", 400, "Number too big"),
    ("POST", "half:predict", b'{"a": nul}', 400, "Invalid value. at offset: 9"),
    (
        "POST",
        "half:predict",
        b'{"a": ' + b"[" * 100_000,
        400,
        "Terminate parsing due to",
    ),
    ("POST", "half:predict", b"\xff\xfe\x00\x01", 400, "Invalid value. at offset: 0"),
    ("POST", "half:predict", b"[1, 2]", 400, "Is not object"),
    ("POST", "half:predict", b"5", 400, "JSON Value: 5 Is not object"),
    # The form of a request.
    ("POST", "half:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
    (
        "POST",
        "half:predict",
        {"instances": [1], "inputs": [1]},
        400,
        "Not formatted correctly expecting only one of 'inputs' or 'instances'",
    ),
    (
        "POST",
        "half:predict",
        {"instances": 1},
        400,
        "} Expecting 'instances' to be an list/array",
    ),
    ("POST", "half:predict", rows(), 400, "No values in 'instances' array"),
    (
        "POST",
        "mixed:predict",
        mixed([1]),
        400,
        "instances is a plain list, but expecting",
    ),
    ("POST", "mixed:predict", mixed(inputs=[1]), 400, "inputs is a plain value/list"),
    (
        "POST",
        "mixed:predict",
        mixed(inputs={"ints": [[1]], "doubles": [[1, 2]]}),
        400,
        "Missing named input: names in 'inputs' object.",
    ),
    (
        "POST",
        "mixed:predict",
        mixed([{"ints": [1]}]),
        400,
        "} keys must be equal to: doubles,ints,names",
    ),
    (
        "POST",
        "mixed:predict",
        mixed([GOOD | {"more": 1}]),
        400,
        ELEMENT + "0 key: more of 'instances' list. Error: INVALID_ARGUMENT: JSON "
        "object: does not have named input: more",
    ),
    (
        "POST",
        "mixed:predict",
        mixed([GOOD, [1]]),
        400,
        "Expecting object but got list at item 1 of input list",
    ),
    (
        "POST",
        "half:predict",
        rows(1, {"x": 1}),
        400,
        "Expecting value/list but got object",
    ),
    # Types.
    (
        "POST",
        "half:predict",
        rows("x"),
        400,
        ELEMENT + "0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: "
        '"x" Type: String' + TYPE + "float",
    ),
    ("POST", "half:predict", rows(1, True), 400, "JSON Value: true Type: True" + TYPE),
    ("POST", "half:predict", rows(None), 400, "JSON Value: null Type: Null" + TYPE),
    (
        "POST",
        "half:predict",
        {"inputs": "x"},
        400,
        'JSON Value: "x" Type: String' + TYPE,
    ),
    ("POST", "half:predict", {"inputs": [{"b64": "YQ=="}]}, 400, "Type: Object" + TYPE),
    ("POST", "mixed:predict", mixed([GOOD | {"ints": [1.0]}]), 400, "1.0 Type: Number"),
    ("POST", "mixed:predict", mixed([GOOD | {"ints": [2**31]}]), 400, TYPE + "int32"),
    ("POST", "mixed:predict", mixed([GOOD | {"names": 5}]), 400, TYPE + "string"),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "halves", "inputs": [1.0]},
        501,
        "Conversion of JSON Value: 1.0 to type: half",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "to_half", "inputs": [1.0]},
        400,
        "Failed to write JSON value for tensor type: half",
    ),
    # Base64.
    (
        "POST",
        "mixed:predict",
        {"signature_name": "echo", "instances": [{"b64": "!!"}]},
        400,
        "Unable to base64 decode",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "echo", "inputs": [{"b64": 5}]},
        400,
        "not formatted correctly for base64 data",
    ),
    # Shapes.
    (
        "POST",
        "half:predict",
        rows([1], [1, 2]),
        400,
        "Expecting tensor size: 1 but got: 2",
    ),
    (
        "POST",
        "half:predict",
        rows([1, 2], [[1, 2]]),
        400,
        "Expecting shape [2] but got: ",
    ),
    ("POST", "half:predict", rows(1, [1]), 400, "Expecting shape [] but got: [1]"),
    (
        "POST",
        "half:predict",
        {"inputs": [[1, 2], [3]]},
        400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        "POST",
        "half:predict",
        {"inputs": [1, [2]]},
        400,
        "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        "POST",
        "half:predict",
        {"inputs": [[1], 2]},
        400,
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: "
        "2",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "product", "instances": [[1, 2, 3]]},
        400,
        "Matrix size-incompatible",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "mean", "instances": [1, 2]},
        400,
        "Tensor name: mean has no shape information",
    ),
    (
        "POST",
        "mixed:predict",
        {"signature_name": "uneven", "instances": [1, 2]},
        400,
        "Tensor name: b has inconsistent batch size: 1 expecting: 2",
    ),
    (
        "POST",
        "mixed:predict",
        b'{"signature_name": "checked", "instances": [NaN]}',
        400,
        "x should be finite",
    ),
    # Classify and regress.
    ("POST", "half:regress", {}, 400, "key 'examples' is expected and was not found"),
    (
        "POST",
        "half:classify",
        {"examples": {}},
        400,
        "'examples' value to be an list/array",
    ),
    (
        "POST",
        "half:classify",
        {"examples": []},
        400,
        "'examples' value is an empty array",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [[1]]},
        400,
        "Example must be JSON object but got",
    ),
    (
        "POST",
        "half:regress",
        {"context": 1},
        400,
        "Example must be JSON object but got JSON",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [{"x": 1.0}]},
        400,
        "Expected regression signature method_name to be tensorflow/serving/regress. "
        "Was: tensorflow/serving/predict",
    ),
    (
        "POST",
        "half:classify",
        {"signature_name": "none", "examples": [{"x": 1.0}]},
        400,
        "No signature was found with the name: none",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [{"x": [10, None]}]},
        400,
        "Feature: x has element with unexpected JSON type: Null",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [{"x": [10, 10.0]}]},
        400,
        "Unexpected element type in feature: x expecting type: int64",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [{"x": [[10]]}]},
        400,
        "Feature: x has element with unexpected JSON type: Array",
    ),
    (
        "POST",
        "half:regress",
        {"examples": [{"x": 18446744073709551603}]},
        400,
        "Feature: x has uint64_t element. Only int64_t is supported.",
    ),
    (
        "POST",
        "half:regress",
        {"signature_name": "regress_x_to_y", "examples": [{"y": 1.0}]},
        400,
        "Feature: x (data type: float) is required but could not be found.",
    ),
    (
        "POST",
        "half:classify",
        {"signature_name": "classify_wrong", "examples": [{"x": 1.0}]},
        400,
        "Expected Tensor shape: [batch_size num_classes] but got [1]",
    ),
    (
        "POST",
        "half:regress",
        {"signature_name": "regress_wrong", "examples": [{"x": 1.0}]},
        400,
        "Expected output Tensor of DT_FLOAT.  Got: DT_STRING",
    ),
    # Size.
    ("POST", "half:predict", b" " * (2**20 + 1), 413, "Request body too large"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), CASES)
def test_the_answer_is_that_of_tensorflow_serving(
    running, method, path, body, status, text
):
    answer = running.post(path, body, method=method)
    assert (answer.status, text in answer.json["error"]) == (status, True), answer.text
    assert list(answer.json) == ["error"]
    assert answer.headers["content-type"] == "application/json"


INPUTS = {"i8": "int8", "u8": "uint8", "i16": "int16", "i64": "int64"} | {
    "u32": "uint32",
    "u64": "uint64",
    "flag": "bool",
}
VALUES = [
    ("null", "Null", "null"),
    ('"x"', "String", '"x"'),
    ("1.5", "Number", "1.5"),
    ("1e3", "Number", "1000.0"),
    ('{"z": []}', "Object", '{\n    "z": []\n}'),
    ("18446744073709551616", "Number", "1.84467441e+19"),
    ("-9223372036854775809", "Number", "-9.22337204e+18"),
    ("NaN", "Number", "NaN"),
]


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_every_type_refuses_what_it_cannot_hold(running, form):
    good = dict.fromkeys(INPUTS, "1") | {"flag": "true"}
    for name, dtype in INPUTS.items():
        for value, kind, text in VALUES:
            members = ", ".join(
                f'"{key}": {value if key == name else item}'
                for key, item in good.items()
            )
            given = f"[{{{members}}}]" if form == "instances" else f"{{{members}}}"
            body = f'{{"signature_name": "kinds", "{form}": {given}}}'
            answer = running.post("mixed:predict", body.encode())
            error = f"JSON Value: {text} Type: {kind}{TYPE}{dtype}"
            if form == "instances":
                element = ELEMENT + f"0 key: {name} of 'instances' list. "
                error = f"{element}Error: INVALID_ARGUMENT: {error}"
            assert (answer.status, answer.json) == (400, {"error": error})


QUERY = {"user_id": "u1", "age_group": "", "country": "", "income": 1.0} | {
    f"history_{event}": [""] for event in ("exposure", "click", "conversion")
}
FINITE = "objective_weights should be finite numbers"
OURS = [
    ({"objective_weights": [1, math.nan, 1]}, FINITE),
    ({"objective_weights": [1, math.inf, 1]}, FINITE),
    ({"objective_weights": [1, 1e300, 1]}, FINITE),
    ({"objective_weights": [1, 1]}, "a row per query (B)"),
    ({"objective_weights": 1}, ""),
    ({"user_id": 5}, "Type: Number" + TYPE + "string"),
    ({"user_id": ["u1"]}, ""),
    ({"income": "much"}, "Type: String" + TYPE + "float"),
    ({"exclude_item_ids": [["i1"]]}, ""),
    ({"history_click": [1]}, "Type: Number" + TYPE + "string"),
]


@pytest.mark.parametrize(("change", "text"), OURS)
def test_requests_that_our_exports_refuse(cascade, tools, change, text):
    row = QUERY | {"objective_weights": [1, 1, 1], "exclude_item_ids": [""]} | change
    body = {"signature_name": "retrieve_weighted", "instances": [row]}
    answer = tools.call(f"{cascade.url}/v1/models/cascade:predict", body)
    assert answer.status == 400 and list(answer.json) == ["error"]
    assert text in answer.json["error"]


def test_there_are_many_cases_and_the_server_outlives_them(running):
    assert len(CASES) + 2 * len(INPUTS) * len(VALUES) + len(OURS) >= 200
    assert running.post("half:predict", rows(1)).json == {"predictions": [2.5]}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1", 404), ("/index", 404), ("/v1/foo", 400), ("/v1/models", 400)],
)
def test_other_paths(running, path, status):
    answer = running.get(path)
    assert answer.status == status and answer.json["error"]


def test_long_values_are_cut_in_errors(running):
    answer = running.post("half:predict", {"inputs": "x" * 500_000})
    assert answer.status == 400 and len(answer.text) < 20_000


def test_deep_but_valid_documents_get_an_answer(running):
    for depth in (100, 240, 900):
        body = ('{"inputs": ' + "[" * depth + "1" + "]" * depth + "}").encode()
        answer = running.post("half:predict", body)
        assert answer.status == 400, answer.text
        assert json.loads(answer.text)["error"]
