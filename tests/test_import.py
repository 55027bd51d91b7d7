"""Importing tfcsmf decides which Keras is used; each test starts a fresh process."""

import os
import subprocess
import sys
from importlib import resources

# Keras 2 as tf.keras has no __version__ of its own; the class tells.
_SHOW_KERAS = "print(tf.keras.Model.__module__)"


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        # This process has imported tfcsmf, which sets the switch.
        if name != "TF_USE_LEGACY_KERAS"
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_import_is_quick_and_silent():
    result = _python(
        "import time; start = time.perf_counter(); import tfcsmf; "
        "print(time.perf_counter() - start)"
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 6.0
    assert result.stderr == ""


def test_import_selects_keras_2():
    result = _python(
        "import tfcsmf, tensorflow as tf, tensorflow_recommenders as tfrs; "
        f"{_SHOW_KERAS}; print(issubclass(tfrs.Model, tf.keras.Model))"
    )
    assert result.returncode == 0, result.stderr
    module, is_keras_model = result.stdout.split()
    assert module.startswith("tf_keras.")
    assert is_keras_model == "True"


def test_import_overrides_a_switch_that_is_off():
    result = _python(
        f"import tfcsmf, tensorflow as tf; {_SHOW_KERAS}", TF_USE_LEGACY_KERAS="0"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tf_keras.")


def test_import_after_tensorflow_works_when_keras_2_is_chosen():
    result = _python(
        f"import tensorflow as tf; import tfcsmf; {_SHOW_KERAS}",
        TF_USE_LEGACY_KERAS="1",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tf_keras.")


def test_import_after_keras_3_says_what_to_do():
    result = _python("import tensorflow as tf; tf.keras.layers; import tfcsmf")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "Keras 3" in last
    assert "Import tfcsmf before tensorflow" in last
    assert "TF_USE_LEGACY_KERAS=1" in last


def test_the_package_is_typed():
    assert resources.files("tfcsmf").joinpath("py.typed").is_file()
