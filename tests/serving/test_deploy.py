"""The deployment files agree with each other, the exports and the embedded server."""

import re
import runpy
import subprocess
from importlib import resources

import yaml
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from google.protobuf import wrappers_pb2 as wrappers

from tfcsmf.serving import ModelOptions, Server, ServerOptions
from tfcsmf.serving.metrics import PATH
from tfcsmf.serving.models import read_model_config

FOLDER = resources.files("tfcsmf.serving") / "deploy"
# Flags of tensorflow_model_server (model_servers/main.cc).
FLAGS = {
    *("model_config_file", "monitoring_config_file"),
    *("enable_batching", "batching_parameters_file"),
}
READY = "/v1/models/cascade/metadata"
INT, TEXT, BOOL, MESSAGE = 3, 9, 8, 11  # types of descriptor.proto


def text(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def message_classes():
    """Messages that tensorflow-serving-api leaves out, as their .proto files say."""
    file = descriptor_pb2.FileDescriptorProto(
        name="deploy_test.proto",
        package="deploy_test",
        syntax="proto3",
        dependency=[wrappers.DESCRIPTOR.name],
    )
    number, name = ".google.protobuf.Int64Value", ".google.protobuf.StringValue"
    messages = {
        # servables/tensorflow/session_bundle_config.proto
        "BatchingParameters": [
            ("max_batch_size", 1, MESSAGE, number),
            ("batch_timeout_micros", 2, MESSAGE, number),
            ("max_enqueued_batches", 3, MESSAGE, number),
            ("num_batch_threads", 4, MESSAGE, number),
            ("thread_pool_name", 5, MESSAGE, name),
            ("pad_variable_length_inputs", 7, BOOL, ""),
        ],
        # config/monitoring_config.proto
        "PrometheusConfig": [("enable", 1, BOOL, ""), ("path", 2, TEXT, "")],
        "MonitoringConfig": [
            ("prometheus_config", 1, MESSAGE, ".deploy_test.PrometheusConfig")
        ],
    }
    for kind, fields in messages.items():
        message = file.message_type.add(name=kind)
        for field, tag, value, of in fields:
            kind_of = {"type_name": of} if of else {}
            message.field.add(name=field, number=tag, type=value, label=1, **kind_of)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        kind: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"deploy_test.{kind}")
        )
        for kind in messages
    }


def parsed(kind, name):
    return text_format.Parse(text(name), message_classes()[kind]())


def flags(arguments):
    pairs = [argument.removeprefix("--").split("=") for argument in arguments]
    assert {name for name, _ in pairs} <= FLAGS
    return dict(pairs)


def kubernetes():
    documents = list(yaml.safe_load_all(text("kubernetes.yaml")))
    return {document["kind"]: document for document in documents}


def container():
    (only,) = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_the_model_is_the_one_the_embedded_server_serves(tools):
    with resources.as_file(FOLDER / "models.config") as path:
        (model,) = read_model_config(str(path))
    arguments = runpy.run_path(str(tools.root / "pipelines" / "serve.py"))["parser"]()
    assert model.name == arguments.parse_args([]).model_name == "cascade"
    assert str(model.base_path) == f"/models/{model.name}"
    assert (model.latest, model.specific) == (1, ())


def test_the_metrics_are_where_the_embedded_server_has_them():
    config = parsed("MonitoringConfig", "monitoring.config").prometheus_config
    assert config.enable and config.path == PATH
    template = kubernetes()["Deployment"]["spec"]["template"]["metadata"]
    assert template["annotations"]["prometheus.io/path"] == PATH
    assert template["annotations"]["prometheus.io/port"] == "8501"


def test_batches_are_bounded_and_histories_not_padded_with_items():
    config = parsed("BatchingParameters", "batching.config")
    assert 1 < config.max_batch_size.value <= 1024
    assert 0 < config.batch_timeout_micros.value <= 10_000
    assert config.num_batch_threads.value >= 1
    assert config.max_enqueued_batches.value >= 1
    # TensorFlow Serving pads with the first element: an item, not "".
    assert not config.pad_variable_length_inputs


def test_compose_services_differ_in_image_and_batching_only():
    services = yaml.safe_load(text("compose.yaml"))["services"]
    assert set(services) == {"cascade", "cascade-batched", "cascade-scann"}
    options = ServerOptions()
    for service in services.values():
        ports = [f"{port}:{port}" for port in (options.grpc_port, options.rest_port)]
        assert service["ports"] == ports
        targets = {volume.rsplit(":", 2)[-2] for volume in service["volumes"]}
        assert targets == {"/models/cascade", "/etc/cascade"}
        for name, value in flags(service["command"]).items():
            if name.endswith("_file"):
                folder, _, file = value.rpartition("/")
                assert folder in targets and (FOLDER / file).is_file()
    images = {name: service["image"] for name, service in services.items()}
    assert "tensorflow/serving" in images["cascade"] == images["cascade-batched"]
    assert "google/tf-serving-scann" in images["cascade-scann"]
    # Only one can have the ports: the others are started by name.
    assert [name for name in services if "profiles" not in services[name]] == [
        "cascade"
    ]
    batched = flags(services["cascade-batched"]["command"])
    assert batched["enable_batching"] == "true"
    assert "enable_batching" not in flags(services["cascade"]["command"])


def test_the_manifest_holds_together():
    found = kubernetes()
    spec = found["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    options = ServerOptions()
    assert ports == {"grpc": options.grpc_port, "rest": options.rest_port}
    for port in found["Service"]["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]]
    pod = spec["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in container()["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounts["models"] == "/models/cascade"
    kustomization = yaml.safe_load(text("kustomization.yaml"))
    assert kustomization["resources"] == ["kubernetes.yaml"]
    (generated,) = kustomization["configMapGenerator"]
    assert {"name": generated["name"]} in [v.get("configMap") for v in pod["volumes"]]
    for value in flags(container()["args"]).values():
        folder, _, file = value.rpartition("/")
        assert folder == mounts["config"] and file in generated["files"]
    assert all((FOLDER / file).is_file() for file in generated["files"])
    # What was accepted is finished before the pod is killed.
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause


def health_command(port):
    service = yaml.safe_load(text("compose.yaml"))["services"]["cascade"]
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD" and READY in command[-1]
    return [*command[:-1], command[-1].replace("localhost/8501", f"127.0.0.1/{port}")]


def test_probes_tell_a_server_that_can_answer_from_one_that_cannot(
    cascade, tools, tmp_path
):
    path = container()["readinessProbe"]["httpGet"]["path"]
    assert path == container()["startupProbe"]["httpGet"]["path"] == READY
    assert container()["livenessProbe"] == container()["livenessProbe"] | {
        "tcpSocket": {"port": "rest"}
    }
    assert tools.call(cascade.url + path).status == 200
    port = int(re.search(r":(\d+)$", cascade.url)[1])
    assert subprocess.run(health_command(port), timeout=20).returncode == 0
    with Server([ModelOptions("cascade", tmp_path)], tools.quick_options()) as empty:
        url = f"http://127.0.0.1:{empty.rest_port}"
        assert tools.call(url + path).status == 404
        done = subprocess.run(health_command(empty.rest_port), timeout=20)
        assert done.returncode != 0
    done = subprocess.run(health_command(empty.rest_port), capture_output=True)
    assert done.returncode != 0  # nobody listens
