"""TensorFlow Serving's REST API over real HTTP; cases after its published tests."""

import gzip
import json
import math

import pytest


def test_status_of_all_and_of_one_version(running):
    expected = {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    for path in ("", "/versions/123", "/labels/stable"):
        answer = running.get(f"/v1/models/half{path}")
        assert (answer.status, answer.json) == (200, expected)
        assert answer.headers["content-type"] == "application/json"
    assert running.get("/V1/Models/half").status == 200


def test_metadata_is_the_signature_map(running):
    answer = running.get("/v1/models/half/metadata")
    assert answer.status == 200
    spec = {"name": "half", "signature_name": "", "version": "123"}
    assert answer.json["model_spec"] == spec
    signatures = answer.json["metadata"]["signature_def"]["signature_def"]
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "name": "x:0",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
            "unknown_rank": False,
        },
    }
    assert running.get("/v1/models/half/versions/123/metadata").json == answer.json


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("half", {"instances": [[1.0, 2.0], [3.0, 4.0]]}, [[2.5, 3.0], [3.5, 4.0]]),
        ("half/versions/123", {"instances": [1.0, 2.0]}, [2.5, 3.0]),
        ("half/labels/stable", {"instances": [1.0, 2.0]}, [2.5, 3.0]),
        ("half", {"instances": [{"x": 1}, {"x": 2}]}, [2.5, 3.0]),
        (
            "half",
            {"signature_name": "serving_default", "instances": [3, 4.0]},
            [3.5, 4.0],
        ),
    ],
)
def test_row_form(running, path, body, expected):
    answer = running.post(f"{path}:predict", body)
    assert (answer.status, answer.json) == (200, {"predictions": expected})


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [([3.0, 4.0], [3.5, 4.0]), ({"x": [3.0]}, [3.5]), (3, 3.5), ([], [])],
)
def test_column_form(running, inputs, outputs):
    answer = running.post("half:predict", {"inputs": inputs})
    assert (answer.status, answer.json) == (200, {"outputs": outputs})


ROWS = [
    {"ints": [1, 2], "names": "a", "doubles": [0.5, -1]},
    {"ints": [3, 4], "names": {"b64": "YgA="}, "doubles": [1, 2]},
]


def test_several_inputs_and_outputs_by_row(running):
    answer = running.post("mixed:predict", {"signature_name": "all", "instances": ROWS})
    assert answer.status == 200
    assert answer.json["predictions"] == [
        {
            "sums": 3,
            "rows": 1,
            "upper": "A",
            "raw_bytes": {"b64": "YQ=="},
            "doubles": [1.0, -2.0],
            "positive": [True, False],
        },
        {
            "sums": 7,
            "rows": -1,
            "upper": "B\0",
            "raw_bytes": {"b64": "YgA="},
            "doubles": [2.0, 4.0],
            "positive": [True, True],
        },
    ]


def test_several_inputs_and_outputs_by_column(running):
    inputs = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    answer = running.post("mixed:predict", {"signature_name": "all", "inputs": inputs})
    assert answer.json["outputs"]["sums"] == [3, 7]
    assert answer.json["outputs"]["raw_bytes"] == [{"b64": "YQ=="}, {"b64": "YgA="}]


def test_integers_and_booleans_keep_their_kinds(running):
    row = {"i8": -3, "u8": 200, "i16": -300, "i64": -(2**63), "u32": 2**32 - 1}
    row |= {"u64": 2**64 - 1, "flag": True}
    body = {"signature_name": "kinds", "instances": [row]}
    assert running.post("mixed:predict", body).json == {"predictions": [row]}


def test_special_numbers_in_and_out(running):
    body = b'{"instances": [NaN, Infinity, -Infinity, Inf, -Inf, 0.2, 9000000, 1e-45]}'
    answer = running.post("half:predict", body)
    values = answer.json["predictions"]
    assert math.isnan(values[0])
    assert values[1:5] == [math.inf, -math.inf, math.inf, -math.inf]
    # Six digits where they suffice, ".0" for whole numbers.
    assert "Infinity, 2.1, 4500002.0, 2.0]" in answer.text


def test_strings_pass_unchanged_also_where_they_are_no_utf8(running):
    body = '{"signature_name": "echo", "instances": ["ü\\n\\"", "\\ud83d\\ude00"]}'
    answer = running.post("mixed:predict", body.encode())
    assert answer.json == {"predictions": ['ü\n"', "😀"]}
    raw = b'{"signature_name": "echo", "instances": ["\xff\xfe", {"b64": "gIE="}]}'
    answer = running.post("mixed:predict", raw)
    texts = [
        text.encode("utf-8", "surrogateescape") for text in answer.json["predictions"]
    ]
    assert texts == [b"\xff\xfe", b"\x80\x81"]


def test_regress_and_classify(running):
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}, {"x": [2.0]}]}
    assert running.post("half:regress", body).json == {"results": [42.0, 3.0]}
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}
    answer = running.post("half/labels/stable:classify", body)
    assert answer.json == {"results": [[["", 12.0]]]}
    body |= {"context": {"x": 10.0}, "examples": [{}, {"x": 20.0}]}
    assert running.post("half:classify", body).json["results"][0] == [["", 7.0]]

    body = {"signature_name": "classify_both", "examples": [{"x": 20.0}]}
    assert running.post("half:classify", body).json == {"results": [[["12.0", 12.0]]]}


def test_a_single_string_keeps_its_zero_bytes(running):
    body = {"signature_name": "first", "inputs": [{"b64": "YQAA"}]}
    answer = running.post("mixed:predict", body)
    assert answer.json == {"outputs": {"b64": "YQAA"}}


def test_compressed_requests(running):
    body = gzip.compress(json.dumps({"instances": [1, 2]}).encode())
    heads = {"content-encoding": "gzip"}
    answer = running.post("half:predict", body, headers=heads)
    assert answer.json == {"predictions": [2.5, 3.0]}
    assert running.post("half:predict", body[:20], headers=heads).status == 400
    bomb = gzip.compress(b" " * 2**21)
    assert running.post("half:predict", bomb, headers=heads).status == 413


def test_health_and_metrics(running):
    assert running.get("/readyz").json == {"ready": True}
    assert running.get("/livez").status == 200
    running.post("half:predict", {"instances": [1]})
    page = running.get("/monitoring/prometheus/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    count = ':tensorflow:serving:request_count{model_name="half",status="OK"}'
    assert count in page.text
    assert ":tensorflow:serving:request_latency_bucket" in page.text
    assert 'tfcsmf_serving_version{model_name="half"} 123.0' in page.text


def test_a_model_that_is_not_ours_has_no_description(running):
    answer = running.get("/tfcsmf/v1/models/half/description")
    assert answer.status == 404 and "no export of tfcsmf" in answer.json["error"]
