"""Small SavedModels that are not tfcsmf's, and a running server of them."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.serving import Limits, ModelOptions, Server, ServerOptions

V1 = tf.compat.v1


def half_plus(path, constant=2.0, scale=0.5):
    """TensorFlow Serving's own test model, as TensorFlow 1 would save it."""
    info, define = V1.saved_model.build_tensor_info, V1.saved_model.build_signature_def
    with tf.Graph().as_default() as graph, V1.Session(graph=graph) as session:
        a = V1.get_variable("a", initializer=tf.constant(scale))
        b = V1.get_variable("b", initializer=tf.constant(constant))
        examples = V1.placeholder(tf.string, [None], name="tf_example")
        features = V1.parse_example(
            examples, {"x": V1.FixedLenFeature([1], tf.float32)}
        )
        x = tf.identity(features["x"], name="x")
        y = tf.add(tf.multiply(a, x), b, name="y")
        flat, text = tf.reshape(y, [-1]), tf.as_string(y)
        session.run(V1.global_variables_initializer())
        method = "tensorflow/serving/"
        inputs = {"inputs": info(examples)}
        signatures = {
            "serving_default": define(
                {"x": info(x)}, {"y": info(y)}, method + "predict"
            ),
            "regress_x_to_y": define(inputs, {"outputs": info(y)}, method + "regress"),
            "regress_x": define(
                {"inputs": info(x)}, {"outputs": info(y)}, method + "regress"
            ),
            "regress_x_to_y2": define(
                inputs, {"outputs": info(y + 1)}, method + "regress"
            ),
            "classify_x_to_y": define(inputs, {"scores": info(y)}, method + "classify"),
            "classify_both": define(
                inputs,
                {"scores": info(y), "classes": info(tf.as_string(y, precision=1))},
                method + "classify",
            ),
            "classify_wrong": define(
                inputs, {"scores": info(flat)}, method + "classify"
            ),
            "regress_wrong": define(
                inputs, {"outputs": info(text)}, method + "regress"
            ),
            "odd": define({"x": info(x)}, {"y": info(y)}, "no/such/method"),
        }
        builder = V1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map=signatures
        )
        builder.save()
    return path


class Mixed(tf.Module):
    """Several inputs and outputs of all kinds JSON has."""

    def __init__(self):
        super().__init__()
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                ["a", "b"], tf.constant([1, 2], tf.int64)
            ),
            -1,
        )

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int32, "ints"),
            tf.TensorSpec([None], tf.string, "names"),
            tf.TensorSpec([None, 2], tf.float64, "doubles"),
        ]
    )
    def all(self, ints, names, doubles):
        return {
            "sums": tf.reduce_sum(ints, 1),
            "rows": self.table.lookup(names),
            "upper": tf.strings.upper(names),
            "raw_bytes": names,
            "doubles": doubles * 2,
            "positive": doubles > 0,
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "m")])
    def product(self, m):
        return {"out": tf.matmul(m, tf.constant([[1.0, 0.5], [0.0, 1.0]]))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "s")])
    def echo(self, s):
        return {"s": s}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "s")])
    def first(self, s):
        return {"one_bytes": s[0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def mean(self, x):
        return {"mean": tf.reduce_mean(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def uneven(self, x):
        return {"a": x, "b": x[:1]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float16, "x")])
    def halves(self, x):
        return {"x": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def to_half(self, x):
        return {"x": tf.cast(x, tf.float16)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def checked(self, x):
        return {"x": tf.debugging.check_numerics(x, "x should be finite")}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def slow(self, x):
        def step(index, value):
            return index + 1, tf.sin(value)

        big = tf.fill([200_000], x[0])
        _, value = tf.while_loop(lambda i, _: i < 100_000, step, (0, big))
        return {"x": x + 0 * value[0]}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], kind, name)
            for name, kind in (
                ("i8", tf.int8),
                ("u8", tf.uint8),
                ("i16", tf.int16),
                ("i64", tf.int64),
                ("u32", tf.uint32),
                ("u64", tf.uint64),
                ("flag", tf.bool),
            )
        ]
    )
    def kinds(self, i8, u8, i16, i64, u32, u64, flag):
        return {"i8": i8, "u8": u8, "i16": i16, "i64": i64} | {
            "u32": u32,
            "u64": u64,
            "flag": flag,
        }


def save_mixed(path):
    model = Mixed()
    names = [
        name for name, value in vars(Mixed).items() if hasattr(value, "python_function")
    ]
    signatures = {name: getattr(model, name) for name in names}
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Base paths: `half` with version 123, `mixed` with version 7."""
    folder = tmp_path_factory.mktemp("models")
    half_plus(folder / "half" / "123")
    save_mixed(folder / "mixed" / "7")
    return folder


def call(url, body=None, method=None, headers=None):
    """Returns status, parsed JSON (or text) and headers."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, data, heads = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, data, heads = error.code, error.read(), error.headers
    text = data.decode("utf-8", "surrogateescape")
    try:
        return SimpleNamespace(
            status=status, json=json.loads(text), text=text, headers=heads
        )
    except ValueError:
        return SimpleNamespace(status=status, json=None, text=text, headers=heads)


def quick_options(**changes):
    """Any free ports, and no waiting."""
    settings = {"rest_port": 0, "grpc_port": 0, "poll_seconds": 0.05, "workers": 4}
    settings |= {"drain_seconds": 0.0} | changes
    return ServerOptions(**settings)


@pytest.fixture(scope="session")
def running(bases):
    """A server of both models; `running.post("half:predict", body)`."""
    models = [
        ModelOptions("half", bases / "half", labels={"stable": 123, "gone": 5}),
        ModelOptions("mixed", bases / "mixed"),
    ]
    options = quick_options(limits=Limits(max_body_bytes=2**20, timeout=30.0))
    with Server(models, options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}"
        yield SimpleNamespace(
            server=server,
            url=url,
            get=lambda path, **more: call(url + path, **more),
            post=lambda path, body, **more: call(
                f"{url}/v1/models/{path}", body, **more
            ),
        )


@pytest.fixture(scope="session")
def tools():
    return SimpleNamespace(
        call=call,
        half_plus=half_plus,
        save_mixed=save_mixed,
        quick_options=quick_options,
        root=Path(__file__).resolve().parents[2],
    )


@pytest.fixture(scope="session")
def cascade_base(tiny_config, tiny_log, tmp_path_factory):
    """Base path with an untrained tfcsmf export as version 1."""
    from tfcsmf.cascade.model import build_model
    from tfcsmf.config import Config
    from tfcsmf.retrieval.export import export_cascade

    settings = ["retrieval.k=10", "retrieval.index=exact"]
    config = Config.from_dict(tiny_config.to_dict(), settings)
    model = build_model(config, tiny_log)
    for parameter in model.owned_parameters:
        parameter.owner.assign(np.zeros(parameter.owner.shape, np.int8))
    stages = len(tiny_log.objectives)
    model.block_owner.assign((np.arange(model.dimension) % stages).astype(np.int8))
    base = tmp_path_factory.mktemp("cascade")
    scales = np.float32([0.5, 1.0, 2.0])
    export_cascade(model, tiny_log, config, scales, base)
    return base


@pytest.fixture(scope="session")
def cascade(cascade_base):
    """A server of that export."""
    models = [ModelOptions("cascade", cascade_base)]
    options = quick_options(limits=Limits(max_rows=100))
    with Server(models, options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}"
        grpc = f"127.0.0.1:{server.grpc_port}"
        yield SimpleNamespace(server=server, url=url, grpc=grpc)
