"""`pipelines/serve.py` as a process: options, load, SIGTERM."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import tensorflow as tf

from tfcsmf import cli

_SCRIPT = Path(__file__).resolve().parents[2] / "pipelines" / "serve.py"


class Doubling(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def __call__(self, x):
        return {"y": 2 * x}


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("serve_pipeline", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doubling")
    model = Doubling()
    tf.saved_model.save(model, str(folder / "1"), signatures=model.__call__)
    return folder


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "neither"),
        (["--model-base-path", "none"], "which is none"),
        (["--model-base-path", ".", "--model-config-file", "x"], "both"),
        (["--model-config-file", "none"], "ModelServerConfig"),
        (["--model-base-path", ".", "--label", "stable"], "name=version"),
        (["--model-base-path", ".", "--timeout", "0"], "--timeout should be greater"),
        (["--model-base-path", ".", "--port", "1"], "--port"),
    ],
)
def test_mistakes_end_with_status_2(main, capsys, extra, message):
    assert cli.run(main, extra) == 2
    assert message in capsys.readouterr().err


def test_help_shows_an_example(main, capsys):
    assert cli.run(main, ["--help"]) == 0
    assert "python pipelines/serve.py --model-base-path" in capsys.readouterr().out


def start(base, *extra):
    command = [sys.executable, str(_SCRIPT), "--model-base-path", str(base)]
    command += ["--model-name", "double", "--rest-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command + list(extra), stderr=subprocess.PIPE, text=True)
    lines, port = [], None
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"REST (\d+), gRPC \d+", line)
        port = int(found.group(1)) if found else port
        if "loaded and warm" in line:
            break
    assert port, "".join(lines)
    return process, f"http://127.0.0.1:{port}/v1/models/double", lines


def test_sigterm_under_load_drops_no_accepted_request(base):
    process, url, lines = start(base, "--label", "stable=1")
    rest = threading.Thread(target=lambda: lines.extend(process.stderr))
    rest.start()
    stop, answered, broken = threading.Event(), [], []

    def ask(number):
        body = json.dumps({"instances": [float(number)]}).encode()
        while not stop.is_set():
            try:
                with urllib.request.urlopen(url + ":predict", body, 30) as response:
                    answer = json.loads(response.read())
                assert answer == {"predictions": [2.0 * number]}
                answered.append(time.monotonic())
            except urllib.error.URLError as error:
                # Refused: nobody accepted it. Anything else broke an accepted one.
                if isinstance(error.reason, ConnectionRefusedError):
                    return
                broken.append(error)
            except Exception as error:
                broken.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    with urllib.request.urlopen(url + "/labels/stable") as response:
        assert response.status == 200
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    stop.set()
    for thread in threads:
        thread.join()
    rest.join(10)
    assert not broken, broken[:3]
    assert len(answered) > 20 and max(answered) > told
    log = "".join(lines)
    assert "SIGTERM: going down" in log and "stopped" in log
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    good = [e for e in entries if e["path"].endswith(":predict")]
    assert len(good) >= len(answered) and {e["status"] for e in good} == {200}
