"""Stage-1 training step against a stock TFRS two-tower, in one run.

    python benchmarks/training_step.py [--batch 1024] [--ids 100000] [--repeats 5]

Both have the towers Embedding -> 128 -> 64 and in-batch negatives only; repeats are
interleaved and medians printed.
"""

import argparse
import os
import platform
import statistics
import time

import tfcsmf  # isort: skip  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.cascade.model import CSMF
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import StageConfig
from tfcsmf.losses import SampledSoftmax
from tfcsmf.towers import Tower

STEPS = 20


def ours(ids: int, optimizer: str):
    candidate = Tower("item_id", ids, name="candidate")
    query = Tower("user_id", ids, name="query")
    model = CSMF(query, candidate, SampledSoftmax(remove_accidental_hits=True))
    step = StageStep(model, StageConfig(optimizer=optimizer))
    step.start("train", 0)

    def run(users, items):
        mask = tf.ones([len(users), len(items)], tf.bool)
        batch = {
            "query": {"user_id": users},
            "candidate": {"item_id": items},
            "items": items,
            "score_mask": mask,
            "seed": tf.constant([0, 0]),
        }
        return step(batch)

    return run


def stock(ids: int, optimizer: str):
    def tower():
        return tf.keras.Sequential(
            [
                tf.keras.layers.Embedding(ids, 64),
                tf.keras.layers.Dense(128, "relu"),
                tf.keras.layers.Dense(64),
            ]
        )

    query, candidate = tower(), tower()
    task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
    make = {"adam": tf.keras.optimizers.Adam, "adagrad": tf.keras.optimizers.Adagrad}
    apply = make[optimizer](1e-2)

    @tf.function
    def run(users, items):
        with tf.GradientTape() as tape:
            loss = task(
                query(users),
                candidate(items),
                candidate_ids=items,
                compute_metrics=False,
            )
        variables = query.trainable_variables + candidate.trainable_variables
        gradients = tape.gradient(loss, variables)
        apply.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--ids", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    draw = generator.integers(3, options.ids, (2, options.batch), dtype=np.int32)
    users, items = tf.constant(draw[0]), tf.constant(draw[1])
    systems = {
        f"{name}, {optimizer}": build(options.ids, optimizer)
        for optimizer in ("adam", "adagrad")
        for name, build in (("tfcsmf stage 1", ours), ("stock TFRS", stock))
    }
    rates = {name: [] for name in systems}
    for run in systems.values():
        run(users, items)
    for _ in range(options.repeats):
        for name, run in systems.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                loss = run(users, items)
            float(loss)
            rates[name].append(STEPS * options.batch / (time.perf_counter() - began))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ",
        end="",
    )
    print(f"TensorFlow {tf.__version__}, tfcsmf {tfcsmf.__version__}; {options}")
    for name, values in rates.items():
        print(f"{name:24} {statistics.median(values):10,.0f} examples/s")


if __name__ == "__main__":
    main()
