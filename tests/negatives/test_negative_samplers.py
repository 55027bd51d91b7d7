"""Samplers draw as they say: distributions, masks, and what is never a negative."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfcsmf.config import EsansConfig
from tfcsmf.losses.own_negatives import POSITIVE
from tfcsmf.negatives.alias import alias_tables
from tfcsmf.negatives.esans import EsansSampler, cluster_probability
from tfcsmf.negatives.sampler import PoolSampler

ITEMS = 60


@pytest.fixture(scope="module")
def codes():
    """Three clusters of the first level, four of the second; item 7 has no codes."""
    rng = np.random.default_rng(5)
    first = rng.choice(3, size=ITEMS, p=[0.5, 0.3, 0.2]).astype(np.int32)
    second = rng.integers(4, size=ITEMS).astype(np.int32)
    first[7] = second[7] = -1
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    return first, second, centres


def esans(codes, trained=ITEMS, **settings):
    return EsansSampler(*codes, trained, EsansConfig(**settings))


def fits(counts, probability):
    """Whether counts are what a distribution would give: chi-square, p > .001."""
    assert counts[probability == 0].sum() == 0
    some = probability > 0
    expected = counts.sum() * probability[some]
    assert expected.min() > 5
    return scipy.stats.chisquare(counts[some], expected).pvalue > 1e-3


def test_esans_shares_uniform_draws_of_the_whole_catalogue_if_asked_to(codes):
    targets, seed = tf.constant([0, 1]), tf.constant([1, 2])
    drawn = {
        pool: EsansSampler(*codes, ITEMS, EsansConfig(pool=pool), 30_000).draw(
            targets, seed
        )
        for pool in ("in_batch", "mixed", "none")
    }
    assert drawn["in_batch"].shared is None and drawn["none"].shared is None
    size = len(codes[0])
    counts = np.bincount(drawn["mixed"].shared.numpy(), minlength=size)
    assert fits(counts, np.full(size, 1 / size))
    # Its own draws are those it has without.
    own = [drawn[pool].own.items.numpy() for pool in ("in_batch", "mixed")]
    np.testing.assert_array_equal(*own)


def draws_of(sampler, item, number=20_000, seed=(1, 2)):
    return sampler.draw(tf.fill([number], item), tf.constant(seed)).own


def definition(codes, item, trained=ITEMS):
    """(probability of an easy draw, of a hard draw) of every item, by definition."""
    first, second, centres = codes
    everyone = np.arange(ITEMS)
    drawable = (everyone < trained) & (first >= 0)
    sizes = np.array([np.sum(drawable & (first == j)) for j in range(len(centres))])
    distance = np.linalg.norm(centres - centres[first[item]], axis=1)
    weight = np.exp(-distance) * (sizes > 0)
    weight[first[item]] = 0
    cluster = weight / weight.sum()
    easy = np.zeros(ITEMS)
    easy[drawable] = (cluster / np.maximum(sizes, 1))[first[drawable]]
    same = drawable & (first == first[item]) & (second != second[item])
    return easy, same / same.sum()


def test_alias_tables_give_their_distribution():
    rng = np.random.default_rng(0)
    weights = rng.random((5, 9)) * (rng.random((5, 9)) < 0.7)
    probability = weights / weights.sum(axis=1, keepdims=True)
    keep, other = alias_tables(probability)
    # A column's probability is what it keeps and what others pass on to it.
    implied = keep.astype(float)
    np.add.at(implied, (np.arange(5)[:, None], other), 1.0 - keep)
    np.testing.assert_allclose(implied / 9, probability, atol=1e-6)


@pytest.mark.parametrize("trained", [ITEMS, 40])
def test_easy_and_hard_draws_pass_a_chi_square_test(codes, trained):
    sampler = esans(codes, trained, easy=2, hard=2)
    for item in (0, 11, 23):
        own = draws_of(sampler, item)
        assert own.mask.numpy().all()
        items = own.items.numpy()
        for place, expected in zip(
            range(4),
            np.repeat(definition(codes, item, trained), 2, axis=0),
            strict=True,
        ):
            counts = np.bincount(items[:, place], minlength=ITEMS)
            assert fits(counts, expected), (item, place)


def test_counts_are_the_draws_times_the_probability(codes):
    sampler = esans(codes, easy=4, hard=6, easy_weight=2.0, hard_weight=0.5)
    own = draws_of(sampler, 11, 50)
    easy, hard = definition(codes, 11)
    expected = np.concatenate(
        [
            np.log(4 * easy[own.items[:, :4]] / 2.0),
            np.log(6 * hard[own.items[:, 4:]] / 0.5),
        ],
        axis=1,
    )
    np.testing.assert_allclose(own.log_counts, expected, rtol=1e-5, atol=1e-5)


def test_draws_of_a_pair_share_their_cluster(codes):
    sampler = esans(codes, easy=4, hard=2, virtual="simple")
    own = draws_of(sampler, 0, 500)
    first = codes[0][own.items.numpy()]
    for one, other in sampler.pairs:
        np.testing.assert_array_equal(first[:, one], first[:, other])
    assert len(sampler.pairs) == 3


def test_no_draw_shares_both_codes(codes):
    first, second, _ = codes
    sampler = esans(codes, easy=8, hard=8)
    targets = np.tile(np.arange(ITEMS), 100).astype(np.int32)
    own = sampler.draw(tf.constant(targets), tf.constant([3, 4])).own
    items, mask = own.items.numpy(), own.mask.numpy()
    same_first = first[items] == first[targets][:, None]
    same_second = second[items] == second[targets][:, None]
    assert not (same_first & same_second & mask).any()
    assert (
        same_first[:, 8:][mask[:, 8:]].all()
        and not same_first[:, :8][mask[:, :8]].any()
    )
    # The one without codes draws nothing and is never drawn.
    assert not mask[targets == 7].any() and mask[targets != 7].all()
    assert not (items[mask] == 7).any()


def test_nothing_is_drawn_where_there_is_nothing():
    """One cluster: no easy ones. One code: no hard ones either."""
    first, second = np.zeros(4, np.int32), np.array([0, 0, 0, 1], np.int32)
    sampler = EsansSampler(
        first, second, np.zeros((1, 2)), 4, EsansConfig(easy=2, hard=2)
    )
    own = sampler.draw(tf.constant([0, 3]), tf.constant([0, 0])).own
    assert own.mask.numpy().tolist() == [[False, False, True, True]] * 2
    assert (own.items.numpy()[0, 2:] == 3).all() and (
        own.items.numpy()[1, 2:] < 3
    ).all()
    assert np.isfinite(own.log_counts).all()


def test_items_in_the_batch_that_share_both_codes_are_kept_apart(codes):
    first, second, _ = codes
    sampler = esans(codes)
    targets, items = np.array([0, 7, 11], np.int32), np.arange(30, dtype=np.int32)[::-1]
    pairs = sampler.kept_apart(tf.constant(targets), tf.constant(items)).numpy()
    same = (first[targets][:, None] == first[items]) & (
        second[targets][:, None] == second[items]
    )
    same[1] = False  # no codes, nothing shared
    assert {tuple(pair) for pair in pairs} == set(zip(*np.nonzero(same), strict=True))
    assert (np.diff(pairs[:, 0]) >= 0).all()
    assert esans(codes, pool="none").kept_apart(targets, items) is None


@pytest.mark.parametrize("mixing", ["safe", "literal"])
def test_mixing_ranges(codes, mixing):
    sampler = esans(codes, mixing=mixing, easy=2, hard=2)
    mix = draws_of(sampler, 0).mix.numpy()
    simple = [first != POSITIVE for first, _ in sampler.pairs]
    low, high = (0.0, 0.5) if mixing == "safe" else (-0.5, 1.5)
    for column, is_simple in enumerate(simple):
        bounds = (0.0, 1.0) if is_simple else (low, high)
        uniform = scipy.stats.uniform(bounds[0], bounds[1] - bounds[0])
        assert scipy.stats.kstest(mix[:, column], uniform.cdf).pvalue > 1e-3


def test_draws_are_a_function_of_the_seed(codes):
    sampler = esans(codes)
    targets = tf.constant([0, 1, 2])
    first, again, other = (
        sampler.draw(targets, tf.constant([0, seed])).own for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.items, again.items)
    np.testing.assert_array_equal(first.mix, again.mix)
    assert (first.items.numpy() != other.items.numpy()).any()


def test_far_clusters_are_drawn_less_and_scale_0_ignores_distance():
    centres, sizes = np.array([[0.0], [1.0], [3.0], [9.0]]), np.array([4, 4, 4, 0])
    near, far = cluster_probability(centres, sizes)[0, 1:3]
    assert near / far == pytest.approx(np.exp(2.0))
    assert cluster_probability(centres, sizes, 0.0)[0].tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("given", ["nothing", "examples", "counts"])
def test_shared_draws_pass_a_chi_square_test(given):
    examples = np.array([0, 0, 0, 1, 1, 4], np.int32)
    options = {"examples": {"examples": examples}}
    options["counts"] = {"counts": np.bincount(examples)}
    sampler = PoolSampler(30_000, 5, in_batch=False, **options.get(given, {}))
    drawn = sampler.draw(tf.constant([0]), tf.constant([7, 7])).shared
    assert drawn.dtype == tf.int32
    popular = np.array([0.5, 1 / 3, 0, 0, 1 / 6])
    expected = np.full(5, 0.2) if given == "nothing" else popular
    assert fits(np.bincount(drawn, minlength=5), expected)
    if given != "nothing":
        np.testing.assert_allclose(sampler.distribution, expected)
