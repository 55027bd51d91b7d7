"""Reading and writing JSON as RapidJSON and TensorFlow Serving do."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcsmf.serving import json_text
from tfcsmf.serving.json_answers import write_predict
from tfcsmf.serving.json_scanner import Scanner
from tfcsmf.serving.json_tensors import read_predict
from tfcsmf.serving.status import Code, RequestError

DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def equal(a, b):
    """Equal, with the same types, and NaN like NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def read(parse):
    """Returns what a parser returns, or its error as text."""
    try:
        return parse()
    except RequestError as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.sampled_from([None, 2]), st.booleans())
def test_the_scanner_reads_what_json_writes(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert equal(Scanner(text.encode()).document(), value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), DOCUMENTS, st.integers(0, 60))
def test_both_ways_of_reading_agree_on_damaged_documents(noise, value, place):
    text = json.dumps({"a": value}).encode()
    data = text[:place] + noise + text[place:]

    quick, slow = read(lambda: json_text.parse(data)), read(Scanner(data).document)
    if data and not (isinstance(quick, str) and "Is not object" in quick):
        assert equal(quick, slow) or str(quick) == str(slow)


@settings(max_examples=100, deadline=None)
@given(
    st.from_regex(
        r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?0?3[0-9]{2})?",
        fullmatch=True,
    ),
    st.sampled_from(["", " ", "\t", "\r\n"]),
    st.sampled_from(["[{}]", "[1,{}]", '{{"b":{}}}']),
)
def test_long_numbers_are_the_same_both_ways(number, space, form):
    data = f'{{"a": {form.format(space + number)}}}'.encode()

    quick = read(lambda: json_text.parse(data))
    slow = read(Scanner(data).document)
    assert quick == slow if isinstance(slow, str) else equal(quick, slow)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32) | st.floats(-1e6, 1e6, width=32), min_size=1))
def test_decimals_are_read_back_exactly(values):
    array = np.array(values, np.float32)
    texts = json_text.decimals(array)
    again = np.array([float(text) for text in texts], np.float32)
    np.testing.assert_array_equal(again, array)
    # Never taken for integers by a reader.
    assert all(any(c in text for c in ".eNI") for text in texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [(9000000, "9e+06"), (999999, "999999.0"), (0.5, "0.5"), (0.0003, "0.0003")]
    + [(0.00003, "3e-05"), (555557.5, "555557.5"), (0.2, "0.2"), (-0.0, "-0.0")],
)
def test_decimals_look_like_tensorflow_servings(value, text):
    assert json_text.decimals(np.float32([value])) == [text]


def test_the_first_of_equal_names_counts():
    assert json_text.parse(b'{"a": 1, "a": 2}') == {"a": 1}
    assert Scanner(b'{"a": 1, "a": 2}').document() == {"a": 1}


def test_a_byte_order_mark_and_what_follows_a_nul_are_skipped():
    assert json_text.parse(b'\xef\xbb\xbf{"a": 1}\0junk') == {"a": 1}


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("1}", "Missing a comma or ] after an array element."),
        ('1]} "x"', "The document root must not be followed by other values."),
        ("x]}", "Invalid value."),
        ('"y', "Missing a closing quotation mark in string."),
    ],
)
def test_large_invalid_documents_are_refused_quickly(end, text):
    data = '{"ü": [' + "1, " * 700_000 + end
    with pytest.raises(RequestError) as caught:
        json_text.parse(data.encode())
    words, _, offset = caught.value.message.partition(" at offset: ")
    assert words == "JSON Parse error: " + text
    assert abs(int(offset) - len(data.encode())) < 8


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[Inf, -Inf, Infinity]", [math.inf, -math.inf, math.inf]),
        (r'"\\\"Inf\\"', '\\"Inf\\'),
        ('"-NaN, Inf"', "-NaN, Inf"),
        (r'["\ud83d\ude00", "\\ud800"]', ["😀", "\\ud800"]),
        (r'"\udc41"', "\udced\udcb1\udc81"),
    ],
)
@pytest.mark.parametrize("size", [1, 2_000_000])
def test_rapidjsons_own_json_is_read_at_any_size(value, expected, size):
    began = time.perf_counter()
    text = "\ufeff{" + " " * size + f'"a": {value}, "b": 1}}\0junk'
    assert json_text.parse(text.encode()) == {"a": expected, "b": 1}
    assert time.perf_counter() - began < 5
    if size == 1:
        assert Scanner(text.encode()).document() == {"a": expected, "b": 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (r'"\ud800"', "The surrogate pair in string is invalid. at offset: 2000007"),
        ("1e999", "Number too big to be stored in double. at offset: 2000006"),
        ("[" * 5000, "the document is nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_large_document(value, text):
    body = "{" + " " * 2_000_000 + f'"a": {value}}}'
    with pytest.raises(RequestError, match=text):
        json_text.parse(body.encode())


def test_a_large_empty_document_is_empty():
    with pytest.raises(RequestError, match="document is empty. at offset: 2000000"):
        json_text.parse(b" " * 2_000_000)


@pytest.mark.parametrize(
    "text", [r'"\ud83d\ude00"', r'"\\ud800"', '"5e400"', '"Infrared"', "1e308", "0e308"]
)
def test_what_only_looks_doubtful_is_read(text):
    assert json_text.parse(b'{"a": ' + text.encode() + b"}") == {"a": json.loads(text)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e308", 1e308),
        ("2e308", math.inf),
        ("-10e308", -math.inf),
        ("0.05e310", math.inf),
        ("0.00001e312", 1e307),
        ("1e-99999", 0.0),
        ("1" * 309, float("1" * 309)),
        ("1e309", None),
        ("0e999", None),
        ("0.5e310", None),
        ("1e+00309", None),
        ("-1e99999999", None),
        ("9" * 309, None),
        ("1" + "0" * 400 + ".5e-300", None),
    ],
)
def test_whether_a_number_is_too_big_is_for_rapidjson_to_say(text, value):
    for parse in (json_text.parse, lambda data: Scanner(data).document()):
        body = f'{{"a": {text}}}'.encode()
        if value is None:
            with pytest.raises(RequestError, match="too big .* at offset: 6"):
                parse(body)
        else:
            assert parse(body) == {"a": value}


def test_half_a_surrogate_pair_passes_if_it_is_the_second():
    body = rb'{"inputs": ["\udc80"]}'
    tensor = read_predict(body, lambda _: {"x": 7}).inputs["x"]
    assert tensor.tolist() == [b"\xed\xb2\x80"]
    assert b"\xed\xb2\x80" in write_predict({"s": tensor}, {"s": 7}, row=True)


def test_numbers_beyond_64_bits_are_doubles():
    types = {"x": 2}
    body = b'{"inputs": [18446744073709551616, -9223372036854775809]}'
    tensor = read_predict(body, lambda _: types).inputs["x"]
    np.testing.assert_array_equal(tensor, [2.0**64, -(2.0**63)])
    with pytest.raises(RequestError, match="is not of expected type: uint64"):
        read_predict(body, lambda _: {"x": 23})


def test_rows_and_columns_give_the_same_tensors():
    types = {"a": 3, "b": 7}
    row = b'{"instances": [{"a": [1], "b": "x"}, {"b": {"b64": "eQ"}, "a": [2]}]}'
    column = b'{"inputs": {"a": [[1], [2]], "b": ["x", "y"]}}'
    rows = read_predict(row, lambda _: types)
    columns = read_predict(column, lambda _: types)
    assert rows.row and not columns.row
    for name in types:
        assert rows.inputs[name].dtype == columns.inputs[name].dtype
        assert rows.inputs[name].tolist() == columns.inputs[name].tolist()
    assert columns.inputs["b"].tolist() == [b"x", b"y"]


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.sampled_from(["inputs", "instances"]), st.integers(1, 23))
def test_any_value_is_read_or_refused(value, form, dtype):
    body = json.dumps({form: value}).encode()
    for types in ({"x": dtype}, {"x": dtype, "y": 7}):
        try:
            read_predict(body, lambda _, types=types: types)
        except RequestError as error:
            assert error.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


def test_empty_batches_and_maps():
    empty = {"x": np.zeros((0, 2), np.int32), "y": np.zeros((0,), np.float32)}
    types = {"x": 3, "y": 1}
    assert json.loads(write_predict(empty, types, row=True)) == {"predictions": []}
    outputs = {"outputs": {"x": [], "y": []}}
    assert json.loads(write_predict(empty, types, row=False)) == outputs
    with pytest.raises(RequestError, match="Cannot convert empty tensor map"):
        write_predict({}, {}, row=True)
