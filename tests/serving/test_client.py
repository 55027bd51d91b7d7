"""The client, over REST and gRPC, against real servers."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from tfcsmf.errors import ServingError
from tfcsmf.retrieval.exported import ExportedModel
from tfcsmf.serving import Client

CATEGORIES = [f"category_{number}" for number in range(5)]
HISTORIES = {"exposure": ["i1", "i2"], "click": ["i2"]}


@pytest.fixture(params=["rest", "grpc"])
def client(request, cascade):
    with Client(
        cascade.url, grpc=cascade.grpc if request.param == "grpc" else None
    ) as c:
        yield c


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"user_id": "u3", "histories": HISTORIES, "k": 4},
        {"weights": {"click": 0, "conversion": 3.5}, "exclude": ["i4", "i5"]},
        {"user_id": "u3", "k": 30, "weights": {"click": 2}},
        {
            "filters": {"category": CATEGORIES},
            "exclude": ["i4"],
            "histories": HISTORIES,
        },
        {"filters": {"brand": ["none such"], "category": []}},
    ],
)
def test_rankings_are_those_of_the_exported_model(client, cascade_base, asked):
    answer = client.retrieve(**asked)
    expected = ExportedModel(cascade_base).retrieve(**asked)
    assert [item.item_id for item in answer] == [item.item_id for item in expected]
    for item, other in zip(answer, expected, strict=True):
        assert item.score == pytest.approx(other.score, rel=1e-4, abs=1e-5)
        assert item.objective_scores == pytest.approx(
            other.objective_scores, rel=1e-4, abs=1e-5
        )


def test_excluding_the_best_moves_the_others_up(client):
    first, second, *_ = client.retrieve("u1", k=3)
    assert client.retrieve("u1", k=1, exclude=[first.item_id])[0] == second


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"weights": {"clik": 1}}, "Did you mean 'click'"),
        ({"weights": {"click": float("nan")}}, "finite"),
        ({"histories": {"views": ["i1"]}}, "history event"),
        ({"histories": {"click": "i1"}}, "Put it into a list"),
        ({"features": {"agegroup": "x"}}, "query feature"),
        ({"k": 0}, "at least 1"),
        ({"filters": {"categry": ["x"]}}, "Did you mean 'category'"),
        ({"filters": {"category": "x"}}, "Put it into a list"),
    ],
)
def test_mistakes_are_explained(client, asked, text):
    with pytest.raises(ServingError, match=text):
        client.retrieve(**asked)


def test_predictions_are_typed(running):
    url, grpc = running.url, f"127.0.0.1:{running.server.grpc_port}"
    inputs = {
        "ints": np.int32([[1, 2]]),
        "names": np.array([b"a"], object),
        "doubles": np.array([[0.5, np.nan]]),
    }
    for place in (None, grpc):
        with Client(url, "mixed", grpc=place) as client:
            outputs = client.predict(inputs, "all")
        assert outputs["sums"].tolist() == [3]
        assert outputs["raw_bytes"].tolist() == [b"a"]
        assert outputs["doubles"].dtype == np.float64
        assert outputs["doubles"][0, 0] == 1.0 and np.isnan(outputs["doubles"][0, 1])
        assert outputs["positive"].dtype == np.bool_
    with Client(url, "half", label="stable") as client:
        assert client.predict({"x": [2.0]})["y"].tolist() == [3.0]
        assert client.status() == {123: "AVAILABLE"}


def test_refusals_have_a_code(running):
    for place in (None, f"127.0.0.1:{running.server.grpc_port}"):
        with Client(running.url, "none", grpc=place, retries=0) as client:
            with pytest.raises(ServingError, match="Latest\\(none\\)") as caught:
                client.predict({"x": [1.0]})
            assert caught.value.code == "NOT_FOUND"
    with Client(running.url, "half") as client:
        with pytest.raises(ServingError, match=r"description=<version"):
            client.retrieve()


def test_requests_of_too_many_rows_are_refused(client):
    query = {
        "user_id": np.full(101, b"u1", object),
        "age_group": np.full(101, b"", object),
        "country": np.full(101, b"", object),
        "income": np.zeros(101, np.float32),
    }
    for event in ("exposure", "click", "conversion"):
        query[f"history_{event}"] = np.full((101, 1), b"", object)
    with pytest.raises(ServingError, match="Task size 101 is larger than maximum"):
        client.predict(query, "embed_query")
    vectors = client.predict({n: v[:100] for n, v in query.items()}, "embed_query")
    assert len(vectors["vectors"]) == 100


def test_earlier_exports_say_what_to_do(cascade, cascade_base):
    path = cascade_base / "1" / "assets.extra" / "cascade.json"
    about = json.loads(path.read_text())
    old = {n: v for n, v in about.items() if n not in ("max_k", "filters")}
    with Client(cascade.url, description=old) as client:
        assert len(client.retrieve()) == 10
        with pytest.raises(ServingError, match="10 at most. Received: 11"):
            client.retrieve(k=11)
        with pytest.raises(ServingError, match="refresh_index"):
            client.retrieve(filters={"category": ["x"]})


def test_the_description_may_come_from_a_file(cascade, cascade_base):
    path = cascade_base / "1" / "assets.extra" / "cascade.json"
    with Client(cascade.url, description=path) as client:
        assert client.description()["objectives"] == ["exposure", "click", "conversion"]
        assert client.retrieve(k=1)


def test_a_server_that_is_not_there(running):
    with Client("http://127.0.0.1:1", retries=1, backoff=0.01) as client:
        with pytest.raises(ServingError, match=r"pipelines/serve.py") as caught:
            client.status()
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(ServingError, match="within 0.1 seconds"):
            client.wait_until_ready(0.1)


def test_safe_errors_are_tried_again():
    """A server that is overloaded twice, closes once, and then answers."""
    times = []

    class Flaky(BaseHTTPRequestHandler):
        def do_GET(self):
            times.append(time.monotonic())
            if len(times) == 3:
                self.connection.close()
                return
            status, body = (503, b"{}") if len(times) < 3 else (200, BODY)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    BODY = b'{"model_version_status": [{"version": "4", "state": "AVAILABLE"}]}'
    server = HTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, retries=4, backoff=0.05) as client:
            assert client.status() == {4: "AVAILABLE"}
        assert len(times) == 4
        pauses = np.diff(times)
        assert pauses[2] > pauses[1] > 0.05
        times.clear()
        with Client(url, retries=1, backoff=0.01) as client:
            with pytest.raises(ServingError) as caught:
                client.status()
        assert caught.value.code == "UNAVAILABLE" and len(times) == 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_rest_client_needs_no_tensorflow():
    code = (
        "import sys; from tfcsmf.serving import Client; Client(); "
        "print([m for m in ('tensorflow', 'starlette', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
