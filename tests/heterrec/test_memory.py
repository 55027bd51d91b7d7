"""What a training step of the encoder holds, in a process of its own."""

import subprocess
import sys

import pytest

# 2,048 events, T = 50, four tokens an item, at the default sizes.
_STEP = """
import tfcsmf
import tensorflow as tf
from tfcsmf.heterrec import BlockSettings, EncoderSettings, HierarchicalEncoder, History

def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

encoder = HierarchicalEncoder(EncoderSettings(4, 50), BlockSettings(64))

@tf.function
def step(tokens):
    with tf.GradientTape() as tape:
        mask = tf.ones(tf.shape(tokens)[:2], tf.bool)
        loss = tf.reduce_sum(encoder(History(tokens, mask)).items ** 2)
    return [tf.reduce_sum(tf.abs(g)) for g in
            tape.gradient(loss, encoder.trainable_variables)]

step(tf.random.normal([1, 50, 4, 64]))
before = peak()
step(tf.random.normal([41, 50, 4, 64]))
print(peak() - before)
"""


@pytest.mark.slow
def test_a_step_needs_no_quadratic_surprise():
    done = subprocess.run(
        [sys.executable, "-c", _STEP],
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    grown = float(done.stdout.split()[-1])
    # 2 MB a token-sized tensor of 41 * 200 * 64 floats, 13 MB attention weights.
    assert 0 < grown < 250
