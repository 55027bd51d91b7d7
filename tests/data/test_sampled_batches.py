"""Batches of every sampler: what is a negative of whom, and how often it counts."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.config import EsansConfig
from tfcsmf.data.batches import BatchSettings, StageBatches
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.negatives.esans import EsansSampler
from tfcsmf.negatives.sampler import PoolSampler

PLAIN = BatchSettings(
    batch_size=16, uniform_negatives=8, hard_negatives=0, history_length=6, seed=3
)
ESANS = EsansConfig(easy=4, hard=6)


def make(log, sampler, objective="click"):
    settings = dataclasses.replace(PLAIN, sampler=sampler, whole_catalogue=10_000)
    return StageBatches(log, objective, settings)


@pytest.fixture(scope="module")
def codes(tiny_log):
    rng = np.random.default_rng(2)
    size = tiny_log.items.size
    first, second = (rng.integers(3, size=size).astype(np.int32) for _ in range(2))
    return first, second, rng.normal(size=(3, 4))


@pytest.fixture(scope="module")
def esans(untimed_log, codes):
    sampler = EsansSampler(*codes, untimed_log.items.trained, ESANS)
    return make(untimed_log, sampler)


@pytest.fixture(scope="module")
def drawn_batches(esans):
    return list(esans.dataset(1.0, 0, 0, 4))


def known_of(log, batch, objective="click"):
    users = tf.gather(batch["rows"]["user_id"], batch["query"]["user_id"]) - 3
    return [set(log.known[objective].row(int(user))) for user in users]


def test_a_sampler_replaces_the_whole_catalogue(tiny_log):
    assert not make(tiny_log, PoolSampler(0, tiny_log.items.size)).has_whole_catalogue
    assert make(tiny_log, None).has_whole_catalogue


def test_the_default_is_mixed(tiny_log):
    """No sampler and no whole catalogue is the pool of today, bit for bit."""
    size = tiny_log.items.size
    settings = [PLAIN, dataclasses.replace(PLAIN, sampler=PoolSampler(8, size))]
    both = [StageBatches(tiny_log, "click", one) for one in settings]
    np.testing.assert_array_equal(both[0].probability, both[1].probability)
    for one, other in zip(*(b.dataset(1.0, 0, 0, 3) for b in both), strict=True):
        np.testing.assert_array_equal(one["items"], other["items"])
        np.testing.assert_array_equal(one["counts"], other["counts"])


def test_without_the_batch_only_draws_count(tiny_log):
    size = tiny_log.items.size
    examples = tiny_log.train["click"].pairs.items
    for sampler in (
        PoolSampler(12, size, in_batch=False),
        PoolSampler(12, size, examples, in_batch=False),
    ):
        batches = make(tiny_log, sampler)
        if sampler.distribution is None:
            np.testing.assert_allclose(batches.probability, 1 / size, rtol=1e-6)
        else:
            np.testing.assert_allclose(
                batches.probability, sampler.distribution, rtol=1e-6
            )
        for batch in batches.dataset(1.0, 0, 0, 3):
            assert batch["counts"].numpy().sum() == 12 == float(batch["draws"])
            assert (batch["counts"].numpy() >= 0).all()


def test_own_negatives_are_neither_known_nor_of_both_codes(
    untimed_log, drawn_batches, codes
):
    first, second, _ = codes
    met_known = False
    for batch in drawn_batches:
        items, own = batch["items"].numpy(), batch["own"]
        kept = own["added"].numpy() > EXCLUDED / 2
        drawn = items[own["columns"].numpy()]
        rows, columns = batch["positives"].numpy().T
        targets, known = items[columns], known_of(untimed_log, batch)
        same = (first[drawn] == first[targets][:, None]) & (
            second[drawn] == second[targets][:, None]
        )
        assert not (same & kept).any() and kept.any()
        for row, some, which in zip(rows, drawn, kept, strict=True):
            assert not known[row] & set(some[which])
        # What is left out stands for the positive itself, and costs no candidate.
        np.testing.assert_array_equal(
            drawn[~kept], np.broadcast_to(targets[:, None], drawn.shape)[~kept]
        )
        met_known |= bool((~kept).any())
        assert len(np.unique(items)) == len(items)
        assert int(batch["pool"]) == len(np.unique(targets)) == len(batch["counts"])
    assert met_known  # or the test would show nothing


def test_pool_negatives_are_neither_known_nor_of_both_codes(
    untimed_log, drawn_batches, codes
):
    first, second, _ = codes
    for batch in drawn_batches:
        pool = batch["items"].numpy()[: int(batch["pool"])]
        rows, columns = batch["positives"].numpy().T
        known = known_of(untimed_log, batch)
        expected = np.array([[item in one for item in pool] for one in known])
        for row, item in zip(rows, pool[columns], strict=True):
            expected[row] |= (first[pool] == first[item]) & (
                second[pool] == second[item]
            )
        pairs = batch["excluded_pairs"].numpy()
        hidden = np.zeros_like(expected)
        hidden[tuple(pairs.T)] = True
        np.testing.assert_array_equal(hidden, expected)
        assert (np.diff(pairs[:, 0]) >= 0).all()


def test_batches_of_esans_are_functions_of_their_number(esans, drawn_batches):
    whole = drawn_batches[3]
    (alone,) = esans.dataset(1.0, 0, 3, 4)
    for name in ("items", "excluded_pairs", "positives", "pool"):
        np.testing.assert_array_equal(whole[name], alone[name])
    for name in ("columns", "added", "mix"):
        np.testing.assert_array_equal(whole["own"][name], alone["own"][name])
