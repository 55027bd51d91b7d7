"""Training speed against a stock two-tower of TensorFlow Recommenders.

    python benchmarks/training.py [--batch 1024 4096] [--users 200000] [--quick]

1. Steps fed with random ids by `tf.data`: towers Embedding -> 128 -> 64 and in-batch
   negatives on both sides. Ours finds the distinct rows of a batch and the users' known
   positives in its input pipeline, beside the step before, as training does, and
   inside the measured time.
2. The same with tables of 1,000,000 rows instead of 100,000, as a ratio of step times.
3. Everything: shuffling, histories, features, negatives, from a simulated log.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import _harness as harness  # isort: skip  (selects Keras 2 before TensorFlow)

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.cascade import capacity
from tfcsmf.cascade.model import CSMF, build_model, margins_due
from tfcsmf.cascade.pruning import make_criterion
from tfcsmf.cascade.stage_step import StageStep
from tfcsmf.config import Config, MarginConfig, StageConfig
from tfcsmf.data.batch_rows import row_blocks
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.inputs import CANDIDATE_ID, QUERY_ID
from tfcsmf.data.known_pairs import known_lists, known_pairs
from tfcsmf.data.prepare import prepare
from tfcsmf.data.rows import NUM_RESERVED
from tfcsmf.evaluation.lists import from_sorted_rows
from tfcsmf.losses import SampledSoftmax
from tfcsmf.towers import Tower

SIZES = {
    "optimizer": ["adam", "adagrad"],
    "batch": [1024, 4096],
    "users": 200_000,
    "items": 100_000,
    "steps": 24,
    "rows": [100_000, 1_000_000],
    "rows_batch": 1024,
    "log_users": 4000,
    "log_items": 10_000,
}
QUICK = {
    "batch": [64],
    "users": 2000,
    "items": 1000,
    "steps": 2,
    "rows": [1000, 4000],
    "rows_batch": 64,
    "log_users": 150,
    "log_items": 100,
}

NONE = MarginConfig(form="none")

Draws = tuple[np.ndarray, np.ndarray]
Run = Callable[[], None]


def draw(users: int, items: int, batch: int, steps: int) -> Draws:
    """Random positions of users and of items, [steps, batch] each."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(users, size=(steps, batch), dtype=np.int32),
        rng.integers(items, size=(steps, batch), dtype=np.int32),
    )


def two_towers(users: int, items: int, margin: MarginConfig = NONE) -> CSMF:
    return CSMF(
        Tower(QUERY_ID, users + NUM_RESERVED, name="query"),
        Tower(CANDIDATE_ID, items + NUM_RESERVED, name="candidate"),
        SampledSoftmax(correct_positives=False),
        margin=margin.model_dump(),
    )


def seed_of(users: tf.Tensor) -> tf.Tensor:
    """A seed of the batch's own, which also says whether it has margins."""
    return tf.stack([0, users[0]])


def open_second_stage(model: CSMF, items: int) -> None:
    """Freezes a first stage as the trainer does, with nothing learnt."""
    settings = StageConfig()
    before = capacity.snapshot(model)
    shares = capacity.Shares(settings.tau, settings.tau, settings.tau)
    capacity.prune(model, 0, make_criterion("cpp", 0), shares)
    parts = np.array_split(np.arange(items) + NUM_RESERVED, max(1, items // 16384))
    model.frozen_candidates = tf.concat(
        [model.all_blocks({CANDIDATE_ID: tf.constant(part)}, 1) for part in parts], 0
    )
    capacity.reopen(model, settings.freed, before, seed=0)
    model.stage = 1


def ours(
    users: int,
    items: int,
    optimizer: str,
    draws: Draws,
    margin: MarginConfig | None = None,
) -> Run:
    """A first stage, or with `margin` a second one."""
    model = two_towers(users, items, margin or NONE)
    if margin:
        open_second_stage(model, items)
    # Every user's known positives: what these steps draw for it.
    pairs = np.unique(np.stack([part.ravel() for part in draws], axis=1), axis=0)
    known = known_lists(from_sorted_rows(pairs[:, 0], pairs[:, 1], users))

    positions = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[positions, positions])
    def assemble(users: tf.Tensor, items: tf.Tensor) -> dict[str, object]:
        # One positive per row, each candidate listed once, as batches do.
        listed, columns, counts = tf.unique_with_counts(items)
        query = {QUERY_ID: users + NUM_RESERVED}
        candidate = {CANDIDATE_ID: listed + NUM_RESERVED}
        return {
            **row_blocks(query, candidate),
            "items": listed,
            "positives": tf.stack([tf.range(tf.size(users)), columns], axis=1),
            "counts": tf.cast(counts, tf.float32),
            "excluded_pairs": known_pairs(*known, users, listed),
            "seed": seed_of(users),
        }

    # Batches differ in their numbers of distinct rows and known positives.
    outputs = assemble.get_concrete_function().structured_outputs
    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec(part.shape, part.dtype), outputs
    )
    step = StageStep(model, StageConfig(optimizer=optimizer), spec)
    step.start("train", model.stage)
    return stepper(step, draws, assemble)


def stock(users: int, items: int, optimizer: str, draws: Draws) -> Run:
    def tower(rows: int) -> tf.keras.Model:
        layers = tf.keras.layers
        return tf.keras.Sequential(
            [layers.Embedding(rows, 64), layers.Dense(128, "relu"), layers.Dense(64)]
        )

    query, candidate = tower(users), tower(items)
    task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
    make = {"adam": tf.keras.optimizers.Adam, "adagrad": tf.keras.optimizers.Adagrad}
    apply = make[optimizer](1e-2)

    @tf.function
    def step(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        users, items = batch
        with tf.GradientTape() as tape:
            vectors = query(users), candidate(items)
            loss = task(*vectors, candidate_ids=items, compute_metrics=False)
        variables = query.trainable_variables + candidate.trainable_variables
        gradients = tape.gradient(loss, variables)
        apply.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return stepper(step, draws)


def stepper(
    step: Callable[..., tf.Tensor],
    draws: Draws,
    assemble: Callable[..., object] | None = None,
) -> Run:
    data = tf.data.Dataset.from_tensor_slices(draws).repeat()
    if assemble is not None:
        data = data.map(assemble)
    stream = iter(data.prefetch(2))

    def run() -> None:
        for _ in range(len(draws[0])):
            loss = step(next(stream))
        float(loss)  # waits for the last step

    return run


def from_memory(report: harness.Report, options: argparse.Namespace) -> None:
    sizes = (options.users, options.items)
    for batch in options.batch:
        draws = draw(*sizes, batch, options.steps)
        share = MarginConfig().share
        due = [bool(margins_due(seed_of(users), share)) for users in draws[0]]
        report.note(f"batches of {batch}: {sum(due)} of {len(due)} have margins")
        for optimizer in options.optimizer:
            common = (*sizes, optimizer, draws)
            systems = {
                "tfcsmf, stage 1": ours(*common),
                "tfcsmf, stage 2": ours(*common, MarginConfig()),
                "tfcsmf, stage 2, no margins": ours(*common, NONE),
                "tfcsmf, stage 2, all with margins": ours(
                    *common, MarginConfig(share=1)
                ),
                "stock TFRS": stock(*common),
            }
            rates = {
                name: [options.steps * batch / value for value in values]
                for name, values in harness.interleave(systems, options.repeats).items()
            }
            peer = statistics.median(rates["stock TFRS"])
            for name, values in rates.items():
                report.add(
                    name,
                    {"optimizer": optimizer, "batch": batch},
                    "examples/s",
                    values,
                    times_stock=statistics.median(values) / peer,
                )
            del systems


def by_rows(report: harness.Report, options: argparse.Namespace) -> None:
    """Step time by table size; an update of looked-up rows does not depend on it."""
    builds = {"tfcsmf, stage 1": ours, "stock TFRS": stock}
    wanted = [(name, optimizer) for name in builds for optimizer in options.optimizer]
    for name, optimizer in wanted:
        if (name, optimizer) == ("stock TFRS", "adam"):
            continue  # it walks over whole tables; the first part shows what that costs
        systems = {
            str(rows): builds[name](
                rows,
                rows,
                optimizer,
                draw(rows, rows, options.rows_batch, options.steps),
            )
            for rows in options.rows
        }
        seconds = harness.interleave(systems, options.repeats)
        first = statistics.median(seconds[str(options.rows[0])])
        for rows in options.rows:
            values = [1e3 * value / options.steps for value in seconds[str(rows)]]
            report.add(
                name,
                {"optimizer": optimizer, "rows": f"{rows}+{rows}"},
                "ms/step",
                values,
                times_smallest=statistics.median(seconds[str(rows)]) / first,
            )
        del systems


def with_input_pipeline(report: harness.Report, options: argparse.Namespace) -> None:
    config = Config.from_dict(
        {"simulator": {"users": options.log_users, "items": options.log_items}}
    )
    log = prepare(config)
    stage = config.cascade.stage
    batches = StageBatches(
        log,
        log.objectives[0],
        BatchSettings(
            stage.batch_size,
            config.loss.uniform_negatives,
            0,
            config.data.history_length,
            config.seed,
            whole_catalogue=config.loss.whole_catalogue,
            rows_per_user=config.data.rows_per_user,
        ),
    )
    model = build_model(config, log)
    step = StageStep(model, stage, batches.element_spec)
    step.start("train", 0)
    steps = 3 * options.steps
    ready = list(batches.dataset(1.0, 0, 0, steps))
    examples = sum(len(batch["positives"]) for batch in ready)
    stream = iter(batches.dataset(1.0, 0, 0, 10**9))  # runs on, as in training

    def whole() -> None:
        for _ in range(steps):
            loss = step(next(stream))
        float(loss)

    def in_memory() -> None:
        for batch in ready:
            loss = step(batch)
        float(loss)

    systems = {
        "tfcsmf, stage 1, whole input pipeline": whole,
        "tfcsmf, the same batches in memory": in_memory,
    }
    seconds = harness.interleave(systems, options.repeats)
    for name, values in seconds.items():
        rates = [examples / value for value in values]
        setting = {"optimizer": stage.optimizer, "batch": batches.batch_size}
        report.add(name, setting, "examples/s", rates)
    report.note(
        f"whole input pipeline: defaults of the configuration, {len(log.objectives)} "
        f"histories of up to {config.data.history_length}, features, all items as "
        f"negatives; "
        f"{len(batches.examples.pairs):,} examples, {log.items.size:,} items"
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = harness.parse("training", __doc__, argv, SIZES, QUICK)
    report = harness.Report(options)
    report.head()
    from_memory(report, options)
    by_rows(report, options)
    with_input_pipeline(report, options)
    report.write()


if __name__ == "__main__":
    main()
