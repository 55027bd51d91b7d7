"""Versions come, go and fail while the others are served."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tfcsmf.serving import ModelOptions, Server
from tfcsmf.serving.inference import predict
from tfcsmf.serving.models import read_model_config
from tfcsmf.serving.servable import Servable
from tfcsmf.serving.status import RequestError
from tfcsmf.serving.versions import ModelVersions


def make(base, **options):
    options = ModelOptions("m", base, **options)
    return ModelVersions(options, Servable, settle=0.0)


def answer(versions, version=None):
    servable, number = versions.acquire(version)
    try:
        outputs, _ = predict(servable, "", {"x": np.float32([2.0])})
        return number, outputs["y"].tolist()
    finally:
        servable.release()


def states(versions):
    return {v: (s.state, s.code.name) for v, s in versions.statuses().items()}


@pytest.fixture(scope="module")
def originals(tmp_path_factory, tools):
    """Versions that add 1, 2, 3."""
    folder = tmp_path_factory.mktemp("originals")
    for version in (1, 2, 3):
        tools.half_plus(folder / str(version), constant=float(version))
    return folder


def publish(originals, base, version):
    """Copies under a hidden name and renames, as an export does."""
    shutil.copytree(originals / str(version), base / ".partial")
    os.rename(base / ".partial", base / str(version))


def test_the_newest_is_served_and_removing_it_rolls_back(originals, tmp_path):
    versions = make(tmp_path)
    versions.poll()
    with pytest.raises(
        RequestError, match=r"Servable not found for request: Latest\(m"
    ):
        versions.acquire(None)
    publish(originals, tmp_path, 1)
    versions.poll()
    assert answer(versions) == (1, [2.0])
    publish(originals, tmp_path, 2)
    versions.poll()
    assert answer(versions) == (2, [3.0])
    assert states(versions) == {2: ("AVAILABLE", "OK"), 1: ("END", "OK")}
    with pytest.raises(RequestError, match=r"Specific\(m, 1\)"):
        versions.acquire(1)
    shutil.rmtree(tmp_path / "2")
    versions.poll()
    assert answer(versions) == (1, [2.0])
    versions.close()


def test_policies(originals, tmp_path):
    for version in (1, 2, 3):
        publish(originals, tmp_path, version)
    for options, served in (
        ({"latest": 2}, [2, 3]),
        ({"latest": 0}, [1, 2, 3]),
        ({"specific": (1, 3, 9)}, [1, 3]),
    ):
        versions = make(tmp_path, **options)
        versions.poll()
        available = [v for v, (s, _) in states(versions).items() if s == "AVAILABLE"]
        assert sorted(available) == served
        assert answer(versions, 1 if 1 in served else 2)[0] in (1, 2)
        versions.close()


DAMAGES = {
    "no graph": lambda path: (path / "saved_model.pb").unlink(),
    "graph cut": lambda path: cut(path / "saved_model.pb"),
    "graph overwritten": lambda path: (path / "saved_model.pb").write_bytes(
        b"\xff" * 99
    ),
    "no variables": lambda path: shutil.rmtree(path / "variables"),
    "variables cut": lambda path: cut(
        path / "variables" / "variables.data-00000-of-00001"
    ),
    "no index": lambda path: (path / "variables" / "variables.index").unlink(),
    "empty": lambda path: [shutil.rmtree(path), path.mkdir()],
    "bad warm-up": lambda path: [
        (path / "assets.extra").mkdir(),
        (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"x" * 40),
    ],
}


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_reported_and_never_served(
    originals, tmp_path, tools, damage
):
    publish(originals, tmp_path, 1)
    shutil.copytree(originals / "2", tmp_path / "2")
    DAMAGES[damage](tmp_path / "2")
    options = tools.quick_options(grpc_port=None, poll_seconds=0.02)
    with Server([ModelOptions("m", tmp_path)], options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m"
        for _ in range(3):
            body = {"instances": [2.0]}
            assert tools.call(url + ":predict", body).json == {"predictions": [2.0]}
            time.sleep(0.03)
        status = tools.call(url + "/versions/2").json["model_version_status"][0]
        assert status["state"] in ("START", "LOADING", "END")
        deadline = time.monotonic() + 20
        while status["state"] != "END" and time.monotonic() < deadline:
            time.sleep(0.02)
            status = tools.call(url + "/versions/2").json["model_version_status"][0]
        assert status["state"] == "END"
        assert status["status"]["error_code"] != "OK"
        assert status["status"]["error_message"]
        assert tools.call(url + "/versions/2:predict", body).status == 404
        # A whole copy in its place is taken up.
        shutil.rmtree(tmp_path / "2")
        publish(originals, tmp_path, 2)
        while tools.call(url + ":predict", body).json != {"predictions": [3.0]}:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_graph_as_text_is_served_too(originals, tmp_path):
    publish(originals, tmp_path, 1)
    saved, file = SavedModel(), tmp_path / "1" / "saved_model.pb"
    saved.ParseFromString(file.read_bytes())
    text = file.with_suffix(".pbtxt")
    text.write_text(text_format.MessageToString(saved))
    file.unlink()
    versions = make(tmp_path)
    versions.poll()
    assert answer(versions) == (1, [2.0])
    versions.close()
    text.write_text(text.read_text()[:-2])
    versions = make(tmp_path)
    versions.poll()
    assert states(versions) == {1: ("END", "DATA_LOSS")}


def test_a_folder_that_still_grows_is_not_loaded(originals, tmp_path):
    loads = []

    def load(path):
        loads.append(path.name)
        return Servable(path)

    versions = ModelVersions(ModelOptions("m", tmp_path), load, settle=0.3)
    (tmp_path / "1").mkdir()
    for name in ("saved_model.pb", "variables"):
        for _ in range(2):
            versions.poll()
            time.sleep(0.05)
        source = originals / "1" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / "1" / name)
    versions.poll()
    assert loads == [] and states(versions) == {1: ("START", "OK")}
    time.sleep(0.35)
    versions.poll()
    assert loads == ["1"] and answer(versions) == (1, [2.0])
    versions.close()


def test_a_folder_changed_while_it_loads_is_not_served(originals, tmp_path):
    def load(path):
        servable = Servable(path)
        (path / "late").write_text("still copying")
        return servable

    publish(originals, tmp_path, 1)
    versions = ModelVersions(ModelOptions("m", tmp_path), load, settle=0.0)
    versions.poll()
    assert states(versions)[1] == ("END", "ABORTED")
    versions.close()


def test_a_vanished_base_path_stops_nothing(originals, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    publish(originals, base, 1)
    versions = make(base)
    versions.poll()
    os.rename(base, tmp_path / "away")
    versions.poll()
    assert answer(versions) == (1, [2.0])
    os.rename(tmp_path / "away", base)
    # Removing the only good version while a damaged one is there: it stays.
    (base / "2").mkdir()
    versions.poll()
    shutil.rmtree(base / "1")
    versions.poll()
    assert answer(versions) == (1, [2.0])
    # Removing everything is meant.
    shutil.rmtree(base / "2")
    versions.poll()
    assert not versions.ready
    versions.close()


def test_a_retired_version_is_freed_after_its_last_request(originals):
    servable = Servable(originals / "1")
    assert servable.acquire()
    servable.retire()
    assert not servable.acquire()
    predict(servable, "", {"x": np.float32([1.0])})
    servable.release()
    with pytest.raises(tf.errors.CancelledError, match="closed"):
        predict(servable, "", {"x": np.float32([1.0])})


def test_first_requests_prepare_the_graph_once(originals, monkeypatch):
    servable = Servable(originals / "1")
    made, make = [], servable._session._make_callable_from_options

    def slowly(options):
        made.append(options)
        time.sleep(0.1)
        return make(options)

    monkeypatch.setattr(servable._session, "_make_callable_from_options", slowly)
    with ThreadPoolExecutor(8) as pool:
        inputs = {"x": np.float32([2.0])}
        answers = pool.map(lambda _: predict(servable, "", inputs), range(8))
        assert [outputs["y"].tolist() for outputs, _ in answers] == [[2.0]] * 8
    assert len(made) == 1
    servable.retire()


def test_swaps_and_rollback_under_load_drop_nothing(originals, tmp_path, tools):
    publish(originals, tmp_path, 1)
    options = tools.quick_options(grpc_port=None, poll_seconds=0.02)
    seen, failures, stop = set(), [], threading.Event()
    with Server([ModelOptions("m", tmp_path)], options) as server:
        assert server.wait_until_ready()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"

        def ask():
            while not stop.is_set():
                got = tools.call(url, {"instances": [2.0] * 3})
                if got.status != 200 or len(set(got.json["predictions"])) != 1:
                    failures.append(got.text)
                else:
                    seen.add(got.json["predictions"][0])

        def wait_for(value):
            deadline = time.monotonic() + 20
            while tools.call(url, {"instances": [2.0]}).json["predictions"] != [value]:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for version in (2, 3):
            publish(originals, tmp_path, version)
            wait_for(version + 1.0)
        shutil.rmtree(tmp_path / "3")
        wait_for(3.0)
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures and seen == {2.0, 3.0, 4.0}


def test_tensorflow_servings_configuration_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        """model_config_list {
          config { name: "a" base_path: "/models/a" model_platform: "tensorflow"
                   model_version_policy { specific { versions: 1 versions: 2 } }
                   version_labels { key: "stable" value: 1 } }
          config { name: "b" base_path: "/models/b"
                   model_version_policy { latest { num_versions: 2 } } }
          config { name: "c" base_path: "/c" model_version_policy { all {} } } }"""
    )
    a, b, c = read_model_config(str(path))
    assert (a.name, a.specific, a.labels) == ("a", (1, 2), {"stable": 1})
    assert (b.latest, b.specific, c.latest) == (2, (), 0)
