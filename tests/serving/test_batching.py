"""Joined requests get the answers they would get alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.serving import BatchingOptions, ModelOptions, Server
from tfcsmf.serving.batching import Batcher, paddable_inputs
from tfcsmf.serving.inference import predict
from tfcsmf.serving.servable import Servable


@pytest.fixture(scope="module")
def mixed(bases):
    return Servable(bases / "mixed" / "7")


@pytest.fixture(scope="module")
def export(cascade_base):
    return Servable(cascade_base / "1")


def run_together(batcher, calls):
    """Runs calls at the same time; returns results or exceptions."""
    barrier = threading.Barrier(len(calls))

    def one(call):
        barrier.wait()
        try:
            return predict(batcher, *call)[0]
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_requests_are_joined_and_split(mixed):
    rows = []
    batcher = Batcher(mixed, BatchingOptions(16, 0.2), observe=rows.append)
    calls = [
        ("product", {"m": np.float32([[i, 1.0], [0.0, i]][: 1 + i % 2])})
        for i in range(8)
    ]
    answers = run_together(batcher, calls)
    for (_, inputs), answer in zip(calls, answers, strict=True):
        expected = inputs["m"] @ np.float32([[1, 0.5], [0, 1]])
        np.testing.assert_allclose(answer["out"], expected, rtol=1e-6)
    assert sum(rows) == 12 and len(rows) < 8


def test_one_bad_request_fails_alone(mixed):
    batcher = Batcher(mixed, BatchingOptions(8, 0.2))
    calls = [("checked", {"x": np.float32([v])}) for v in (1, np.nan, 3, 4)]
    good, bad, *others = run_together(batcher, calls)
    assert isinstance(bad, tf.errors.InvalidArgumentError)
    assert [a["x"].tolist() for a in (good, *others)] == [[1.0], [3.0], [4.0]]


@pytest.mark.parametrize("signature", ["mean", "uneven"])
def test_what_cannot_be_split_runs_alone(mixed, signature):
    batcher = Batcher(mixed, BatchingOptions(8, 0.05))
    calls = [(signature, {"x": np.float32([v, v])}) for v in range(4)]
    for value, answer in enumerate(run_together(batcher, calls)):
        alone = predict(mixed, signature, {"x": np.float32([value, value])})[0]
        for name in alone:
            assert answer[name].tolist() == alone[name].tolist()


def test_only_equal_shapes_are_joined(mixed):
    rows = []
    batcher = Batcher(mixed, BatchingOptions(8, 0.05), observe=rows.append)
    calls = [
        (
            "all",
            {
                "ints": np.ones((1, width), np.int32),
                "names": np.array([b"a"], object),
                "doubles": np.ones((1, 2)),
            },
        )
        for width in (1, 2, 3)
    ]
    answers = run_together(batcher, calls)
    assert [a["sums"].tolist() for a in answers] == [[1], [2], [3]]
    assert rows == [1, 1, 1]


def test_histories_of_our_exports_are_padded(export):
    rows = []
    padded = paddable_inputs(export)
    batcher = Batcher(export, BatchingOptions(8, 0.3), padded, rows.append)
    signature = export.signatures["retrieve_weighted"]
    calls = []
    for length in (1, 3, 5):
        inputs = {}
        for name, info in signature.inputs.items():
            text = info.dtype == tf.string.as_datatype_enum
            kind, empty = (object, b"") if text else (np.float32, 1.0)
            sizes = [dim.size for dim in info.tensor_shape.dim]
            inputs[name] = np.full([max(size, 1) for size in sizes], empty, kind)
            if name.startswith("history_"):
                inputs[name] = np.array([[b"i%d" % i for i in range(length)]], object)
        calls.append(("retrieve_weighted", inputs))
    answers = run_together(batcher, calls)
    for call, answer in zip(calls, answers, strict=True):
        alone = predict(export, *call)[0]
        assert answer["item_ids"].tolist() == alone["item_ids"].tolist()
        np.testing.assert_allclose(answer["scores"], alone["scores"], rtol=1e-4)
    assert sum(rows) == 3 and len(rows) < 3


def test_filters_and_k_of_joined_requests_are_their_own(export):
    batcher = Batcher(export, BatchingOptions(8, 0.3), paddable_inputs(export))
    signature = export.signatures["retrieve_filtered"]
    calls = []
    for k, categories in ((2, [""]), (5, ["category_1", "category_2"]), (0, ["?"])):
        inputs = {}
        for name, info in signature.inputs.items():
            text = info.dtype == tf.string.as_datatype_enum
            kind, empty = (object, b"") if text else (np.float32, 1.0)
            sizes = [dim.size for dim in info.tensor_shape.dim]
            inputs[name] = np.full([max(size, 1) for size in sizes], empty, kind)
        inputs["k"] = np.int32([k])
        values = [[name.encode() for name in categories]]
        inputs["filter_category"] = np.array(values, object)
        calls.append(("retrieve_filtered", inputs))
    answers = run_together(batcher, calls)
    for call, answer in zip(calls, answers, strict=True):
        alone = [name for name in predict(export, *call)[0]["item_ids"][0] if name]
        assert [name for name in answer["item_ids"][0] if name] == alone
    assert not any(answers[2]["item_ids"][0])


def test_a_lonely_request_does_not_wait(mixed):
    batcher = Batcher(mixed, BatchingOptions(8, 5.0))
    began = time.perf_counter()
    predict(batcher, "echo", {"s": np.array([b"x"], object)})
    assert time.perf_counter() - began < 2.0


def test_a_server_that_joins_requests(bases, tools):
    options = tools.quick_options(workers=8, batching=BatchingOptions(8, 0.01))
    with Server([ModelOptions("half", bases / "half")], options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}"

        def ask(value):
            body = {"instances": [float(value)]}
            return tools.call(f"{url}/v1/models/half:predict", body).json["predictions"]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(64)))
        assert answers == [[2 + value / 2] for value in range(64)]
        page = tools.call(url + "/monitoring/prometheus/metrics").text
    assert 'tfcsmf_serving_batch_rows_sum{model_name="half"} 64.0' in page
