"""Readiness, limits, timeouts, logs and drains of a running server."""

import http.client
import json
import logging
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import prediction_log_pb2

from tfcsmf.errors import ConfigError
from tfcsmf.serving import Client, Limits, ModelOptions, Server
from tfcsmf.serving.metrics import PATH
from tfcsmf.serving.servable import Servable
from tfcsmf.serving.status import RequestError
from tfcsmf.serving.warmup import read_warmup, run_warmup


def write_requests(folder, signature, value, count=1):
    (folder / "assets.extra").mkdir()
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(count):
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.signature_name = signature
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([value])))
            writer.write(log.SerializeToString())


def test_ready_comes_after_the_warm_up(bases, tmp_path, tools):
    shutil.copytree(bases / "mixed" / "7", tmp_path / "1")
    write_requests(tmp_path / "1", "slow", 1.0)
    for folder, _, names in os.walk(
        tmp_path / "1"
    ):  # long written, so it loads at once
        for name in ["", *names]:
            os.utime(os.path.join(folder, name), (1e9, 1e9))
    options = tools.quick_options(limits=Limits(timeout=1.0))
    with Server([ModelOptions("m", tmp_path)], options) as server:
        url = f"http://127.0.0.1:{server.rest_port}"
        assert tools.call(url + "/livez").status == 200
        assert tools.call(url + "/readyz").status == 503
        deadline = time.monotonic() + 30
        while tools.call(f"{url}/v1/models/m").status == 404:
            assert time.monotonic() < deadline
        body = {"signature_name": "mean", "inputs": [1.0]}
        assert tools.call(f"{url}/v1/models/m:predict", body).status == 404
        states = []
        while "END" not in states:
            answer = tools.call(f"{url}/v1/models/m/versions/1").json
            states.append(answer["model_version_status"][0]["state"])
            assert time.monotonic() < deadline
        # The warm-up request takes longer than the timeout: such a model fails.
        assert "AVAILABLE" not in states and "LOADING" in states
        status = answer["model_version_status"][0]["status"]
        assert status["error_code"] == "DEADLINE_EXCEEDED"
        assert tools.call(url + "/readyz").status == 503


def test_exports_have_a_warm_up_request_per_signature(cascade_base):
    folder = cascade_base / "1"
    logs = list(read_warmup(folder))
    requests = [log.predict_log.request for log in logs]
    servable = Servable(folder)
    names = {name for name in servable.signatures if not name.startswith("__")}
    assert {r.model_spec.signature_name for r in requests} == names
    for request in requests:
        signature = servable.signatures[request.model_spec.signature_name]
        assert set(request.inputs) == set(signature.inputs)
    assert run_warmup(servable, folder) == len(names) == 6
    servable.retire()


def test_all_kinds_of_requests_warm_up(bases, tmp_path):
    (tmp_path / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog()
    task = log.multi_inference_log.request.tasks.add()
    task.method_name = "tensorflow/serving/regress"
    task.model_spec.signature_name = "regress_x_to_y"
    examples = log.multi_inference_log.request.input.example_list.examples
    examples.add().features.feature["x"].float_list.value.append(1.0)
    other = prediction_log_pb2.PredictionLog()
    other.session_run_log.SetInParent()
    servable = Servable(bases / "half" / "123")
    path = str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
    for logs in ([log], [log, other]):
        with tf.io.TFRecordWriter(path) as writer:
            for entry in logs:
                writer.write(entry.SerializeToString())
        if len(logs) == 1:
            assert run_warmup(servable, tmp_path) == 1
        else:
            with pytest.raises(RequestError, match="Unsupported log_type for warmup"):
                run_warmup(servable, tmp_path)
    servable.retire()


def test_slow_requests_time_out_and_the_others_go_on(bases, tools):
    options = tools.quick_options(limits=Limits(timeout=2.0))
    with Server([ModelOptions("m", bases / "mixed")], options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        slow = {"signature_name": "slow", "inputs": [1.0]}
        quick = {"signature_name": "mean", "inputs": [1.0]}
        assert tools.call(url, quick).status == 200
        with ThreadPoolExecutor(2) as pool:
            began = time.monotonic()
            answer = pool.submit(tools.call, url, slow)
            assert tools.call(url, quick).json == {"outputs": 1.0}
            assert answer.result().status == 504
            assert time.monotonic() - began < 20
        assert tools.call(url, quick).status == 200


def test_a_body_that_does_not_come_is_given_up(bases, tools):
    options = tools.quick_options(grpc_port=None, limits=Limits(timeout=0.3))
    with Server([ModelOptions("half", bases / "half")], options) as server:
        with socket.create_connection(("127.0.0.1", server.rest_port)) as sock:
            sock.sendall(
                b"POST /v1/models/half:predict HTTP/1.1\r\nHost: a\r\n"
                b"Content-Length: 50\r\n\r\n{"
            )
            sock.settimeout(10)
            assert sock.recv(4096).startswith(b"HTTP/1.1 408")


def test_too_many_requests_are_turned_away(bases, tools):
    limits = Limits(timeout=3.0, max_in_flight=1)
    options = tools.quick_options(grpc_port=None, limits=limits)
    with Server([ModelOptions("m", bases / "mixed")], options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(
                tools.call, url, {"signature_name": "slow", "inputs": [1.0]}
            )
            time.sleep(0.3)
            answer = tools.call(url, {"signature_name": "mean", "inputs": [1.0]})
            assert answer.status == 503 and "too many" in answer.json["error"]
            slow.result()
        page = tools.call(f"http://127.0.0.1:{server.rest_port}{PATH}").text
        for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            assert f'request_count{{model_name="",status="{code}"}} 1' in page


def test_the_access_log_is_json(running, caplog):
    with caplog.at_level(logging.INFO, "tfcsmf.serving.access"):
        running.post("half:predict", {"instances": [1]})
        running.post("half:predict", b"{")
        port = running.server.grpc_port
        with Client(running.url, "half", grpc=f"127.0.0.1:{port}") as client:
            client.predict({"x": [1.0]})
        time.sleep(0.1)
    entries = [json.loads(record.getMessage()) for record in caplog.records]
    good, bad, grpc = [e for e in entries if "half" in e.get("path", "half")][:3]
    assert (good["status"], good["model"], good["code"]) == (200, "half", "OK")
    assert good["path"] == "/v1/models/half:predict" and good["milliseconds"] > 0
    assert (bad["status"], bad["code"]) == (400, "INVALID_ARGUMENT")
    assert (grpc["protocol"], grpc["method"], grpc["code"]) == ("grpc", "Predict", "OK")


def test_a_taken_port_is_named(running, bases, tools):
    models = [ModelOptions("half", bases / "half")]
    for change in (
        {"rest_port": running.server.rest_port},
        {"grpc_port": running.server.grpc_port},
    ):
        with pytest.raises(ConfigError, match="free port"):
            Server(models, tools.quick_options(**change)).start()
    with pytest.raises(ConfigError, match="distinct"):
        Server(models * 2)


def test_stopping_finishes_what_was_accepted(bases, tools):
    options = tools.quick_options(drain_seconds=0.3)
    server = Server([ModelOptions("m", bases / "mixed")], options)
    server.start()
    assert server.wait_until_ready()
    url = f"http://127.0.0.1:{server.rest_port}"
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    connection.request("GET", "/v1/models/m")
    assert connection.getresponse().read()
    stopping = threading.Thread(target=server.stop)
    body = json.dumps({"signature_name": "mean", "inputs": [1.0]})
    stopping.start()
    time.sleep(0.1)
    # Still answered, and told to go elsewhere.
    assert tools.call(url + "/readyz").status == 503
    connection.request("POST", "/v1/models/m:predict", body)
    response = connection.getresponse()
    assert response.status == 200 and response.headers["connection"] == "close"
    assert json.loads(response.read()) == {"outputs": 1.0}
    stopping.join(20)
    assert not stopping.is_alive()
    with pytest.raises(OSError):
        tools.call(url + "/livez")


BODIES = st.binary(max_size=60) | st.builds(
    lambda form, value, signature: json.dumps(
        {form: value} | ({"signature_name": signature} if signature else {})
    ).encode(),
    st.sampled_from(["inputs", "instances", "examples", "x"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["x", "ints", "names", "doubles", "b64", "s"]), inner
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(["", "all", "product", "echo", "kinds", "checked", "odd"]),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["half", "mixed"]),
    st.sampled_from(["predict", "classify", "regress"]),
    BODIES,
)
def test_any_body_gets_an_answer_of_the_right_form(running, model, method, body):
    answer = running.post(f"{model}:{method}", body)
    # 500: signatures without a method name can be asked for, as in TF Serving.
    assert answer.status in (200, 400, 413, 500, 501), answer.text
    key = {"predict": ("predictions", "outputs"), "error": ("error",)}
    keys = key.get(method, ("results",)) if answer.status == 200 else key["error"]
    assert list(answer.json)[0] in keys
    if answer.status == 500:
        assert "method_name" in answer.json["error"]


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
)
def test_any_path_gets_an_answer(running, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", running.server.rest_port)
    try:
        connection.request(method, "/v1/models/" + path, b"{}")
        response = connection.getresponse()
        response.read()
        assert response.status in (200, 400, 404, 405)
    finally:
        connection.close()
