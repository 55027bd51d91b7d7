"""Samplers in the stages of a cascade: resume, frozen scores, and their losses."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.cascade.model import build_model
from tfcsmf.cascade.samplers import make_sampler, stage_negatives
from tfcsmf.cascade.trainer import CascadeTrainer
from tfcsmf.cascade.training_state import model_arrays
from tfcsmf.config import Config
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.data.prepare import prepare
from tfcsmf.errors import ConfigError
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.negatives.sampler import PoolSampler

TINY = {
    "simulator": {"users": 60, "items": 40, "exposures_per_user": 20},
    "towers": {
        "dimension": 8,
        "embedding_dimension": 8,
        "feature_dimension": 4,
        "hidden_units": [16],
    },
    "loss": {
        "uniform_negatives": 16,
        "negatives": {
            "memory": 24,
            "esans": {
                "easy": 2,
                "hard": 4,
                "clusters": {
                    "aligned_dimension": 6,
                    "alignment_steps": 2,
                    "first_level": 3,
                    "second_level": 3,
                },
            },
        },
    },
    "cascade": {
        "objectives": ["exposure", "click"],
        "stage": {"epochs": 1, "batch_size": 64, "recovery_epochs": 1},
        "checkpoint_every": 1,
    },
    "evaluation": {"validation_k": 5},
}


class _Killed(Exception):
    pass


def trainer_of(folder, log, *assignments):
    config = Config.from_dict(TINY, assignments)
    model = build_model(config, log)
    trainer = CascadeTrainer(config, log, model, folder, show_progress=False)
    trainer.pace.share = math.inf
    return trainer


@pytest.fixture(scope="module")
def log():
    return prepare(Config.from_dict(TINY))


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_parameters(tmp_path, log):
    choice = (
        "cascade.stages={exposure: {sampler: cross_batch}, click: {sampler: esans}}"
    )
    whole = trainer_of(tmp_path / "whole", log, choice)
    whole.train()
    assert whole.frozen.num_stages == 2
    assert whole.frozen.max_abs_change() == 0.0

    first = trainer_of(tmp_path / "killed", log, choice)

    for stage in (0, 1):

        def dying(state, arrays, save=first.store.save, stage=stage):
            save(state, arrays)
            if state["step"] == 1 and state["stage"] == stage:
                raise _Killed

        first.store.save = dying
        with pytest.raises(_Killed):
            first.train()
        first = trainer_of(tmp_path / "killed", log, choice)
        assert first.resume()
    first.train()
    expected = model_arrays(whole.model)
    for name, value in model_arrays(first.model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    (codes,) = {tuple(t.clusters.first) for t in (whole, first)}
    assert len(codes) == log.items.size
    assert (tmp_path / "killed" / "checkpoints" / "clusters").is_dir()


def test_an_extended_run_keeps_the_codes_of_items(tmp_path, log):
    names = "loss.negatives.sampler=esans"
    base = trainer_of(tmp_path / "base", log, names)
    codes = base.clusters.first
    base.store.save({}, {})
    base.store.latest = lambda: None  # its parameters do not matter here
    other = trainer_of(tmp_path / "other", log, names, "seed=5")
    other.inherit(base.store)
    np.testing.assert_array_equal(other.clusters.first, codes)
    alone = trainer_of(tmp_path / "alone", log, names, "seed=5")
    assert (alone.clusters.first != codes).any()


def batch_and_model(log, name, *assignments, objective="exposure"):
    config = Config.from_dict(TINY, ["towers.normalize=False", *assignments])
    clusters = None
    if name == "esans":
        from tfcsmf.negatives.clusters import build_clusters

        settings = config.loss.negatives.esans.clusters
        clusters = build_clusters(log, settings, 0)
    sampler = make_sampler(name, log, objective, config, clusters)
    batches = StageBatches(
        log, objective, BatchSettings(32, 16, 0, 6, 0, sampler=sampler)
    )
    model = build_model(config, log)
    model.sampling_probability = tf.constant(batches.probability)
    model.negatives = stage_negatives(config, batches, model.dimension)
    return next(iter(batches.dataset(1.0, 0, 0, 1))), model, batches


def vectors_of(model, batch):
    blocks = model.row_blocks(batch["rows"])
    query = model.query_vectors(batch["query"], 0, True, None, blocks)
    candidate = model.candidate_vectors(batch["candidate"], 0, True, None, blocks)
    return query.numpy() / model.task.temperature, candidate.numpy()


@pytest.mark.parametrize("shared", ["in_batch", "mixed", "none"])
def test_the_esans_loss_is_the_softmax_of_all_its_negatives(log, shared):
    batch, model, batches = batch_and_model(
        log, "esans", f"loss.negatives.esans.pool={shared}", "loss.uniform_negatives=9"
    )
    assert batches.sampler.shared_draws == 9 * (shared == "mixed")
    query, candidate = vectors_of(model, batch)
    pool = int(batch["pool"])
    added = batch["own"]["added"].numpy()
    counts = batch["counts"].numpy()
    expected_counts = batches.probability[batch["items"].numpy()[:pool]]
    positives = batch["positives"].numpy()
    drawn = len(positives) * (shared != "none") + batches.sampler.shared_draws
    assert counts.sum() == drawn
    draws = counts.sum() - len(positives) / 32
    hidden = {tuple(p) for p in batch["excluded_pairs"].numpy()}
    hidden |= {tuple(p) for p in positives}
    total = 0.0
    for number, (row, column) in enumerate(positives):
        scores = query[row] @ candidate.T
        mass = np.exp(scores[column])
        for other in range(pool):
            if (row, other) not in hidden and counts[other]:
                share = counts[other] / (draws * expected_counts[other])
                mass += share * np.exp(scores[other])
        own = scores[batch["own"]["columns"].numpy()[number]] + added[number]
        mass += np.exp(own).sum()
        own = np.append(own, scores[column])  # the positive comes last
        for (one, other), a in zip(
            batches.sampler.pairs, batch["own"]["mix"].numpy()[number], strict=True
        ):
            first, second = own[one], own[other]
            used = [added[number, place] for place in (one, other) if place >= 0]
            if min(used) < EXCLUDED / 2:
                continue
            logit = a * first + (1 - a) * second
            if one < 0:  # all of the other's correction
                logit += a * added[number, other]
            mass += np.exp(logit)
        total += np.log(mass) - scores[column]
    loss = float(model.compute_loss(batch))
    assert loss == pytest.approx(total / len(positives), rel=1e-4)


@pytest.mark.parametrize(("name", "in_batch"), [("dns", True), ("mixgcf", False)])
def test_the_loss_of_the_hardest_is_the_softmax_with_them(log, name, in_batch):
    batch, model, batches = batch_and_model(
        log,
        name,
        "loss.negatives.hardest.draws=6",
        "loss.negatives.hardest.hardest=2",
        f"loss.negatives.hardest.in_batch={in_batch}",
    )
    query, candidate = vectors_of(model, batch)
    pool, positives = int(batch["pool"]), batch["positives"].numpy()
    counts = batch["counts"].numpy()
    draws = max(counts.sum() - in_batch * len(positives) / 32, 1.0)
    expected_counts = draws * batches.probability[batch["items"].numpy()[:pool]]
    hidden = {tuple(p) for p in batch["excluded_pairs"].numpy()}
    hidden |= {tuple(p) for p in positives}
    total = 0.0
    for number, (row, column) in enumerate(positives):
        scores = query[row] @ candidate.T
        mass = np.exp(scores[column])
        for other in range(pool):
            if (row, other) not in hidden:
                mass += counts[other] / expected_counts[other] * np.exp(scores[other])
        added = batch["own"]["added"].numpy()[number]
        own = scores[batch["own"]["columns"].numpy()[number]]
        kept = added > EXCLUDED / 2
        added, own = added[kept], own[kept]
        np.testing.assert_allclose(added, np.log(log.items.trained / 6), rtol=1e-5)
        logits = own + added
        if name == "mixgcf":
            a = batch["own"]["mix"].numpy()[number][kept]
            logits = np.append(logits, a * scores[column] + (1 - a) * own + added)
        mass += np.exp(np.sort(logits)[-2:]).sum()
        total += np.log(mass) - scores[column]
    loss = float(model.compute_loss(batch))
    assert loss == pytest.approx(total / len(positives), rel=1e-4)


def test_a_memory_adds_the_candidates_of_batches_before(log):
    batch, model, batches = batch_and_model(log, "cross_batch")
    memory = model.negatives.memory
    empty = float(model.compute_loss(batch, training=False))
    assert (memory.items.numpy() == -1).all()
    other, plain, _ = batch_and_model(log, "in_batch")
    np.testing.assert_array_equal(other["items"], batch["items"])
    for ours, theirs in zip(
        plain.owned_parameters, model.owned_parameters, strict=True
    ):
        ours.variable.assign(theirs.variable)
    assert float(plain.compute_loss(other)) == pytest.approx(empty, rel=1e-6)
    model.compute_loss(batch, training=True)
    rows, columns = batch["positives"].numpy().T
    items = batch["items"].numpy()[columns][:24]
    np.testing.assert_array_equal(memory.items, items)
    # Known positives of a row in the memory are no negatives of it.
    pairs = memory.excluded_pairs(batch["known"]).numpy()
    known = {
        (row, place)
        for row, number in enumerate(batch["known"].numpy())
        for place, item in enumerate(items)
        if item in set(log.known["exposure"].row(number))
    }
    assert {tuple(pair) for pair in pairs} == known != set()
    filled = float(model.compute_loss(batch))
    assert np.isfinite(filled) and filled != empty


def test_a_memory_counts_in_the_mixture_of_sources(log):
    def draws_of(memory):
        sampler = PoolSampler(0, log.items.size, memory=memory)
        settings = BatchSettings(32, 16, 8, 6, 0, sampler=sampler)
        batches = StageBatches(log, "click", settings)
        others = 31 * batches.rows.expected_targets(settings.target_share)
        return batches.probability * (others + memory + 8)

    items = log.train["click"].pairs.items
    examples = np.bincount(items, minlength=log.items.size) / len(items)
    np.testing.assert_allclose(draws_of(24) - draws_of(0), 24 * examples, atol=1e-4)


def test_stages_choose_their_sampler(log):
    config = Config.from_dict(
        TINY,
        [
            "loss.negatives.sampler=uniform",
            "cascade.stages={click: {sampler: in_batch}}",
        ],
    )
    assert config.sampler("exposure") == "uniform"
    assert config.sampler("click") == "in_batch"
    assert make_sampler("auto", log, "click", config) is None
    assert not make_sampler("uniform", log, "click", config).in_batch
    nothing = Config.from_dict(TINY, ["loss.uniform_negatives=0"])
    with pytest.raises(ConfigError, match="at least 1"):
        make_sampler("popularity", log, "click", nothing)
    with pytest.raises(ConfigError, match="sampler"):
        Config.from_dict(TINY, ["loss.negatives.sampler=esan"])
