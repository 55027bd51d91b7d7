"""The chunked softmax against the plain definition, over several chunks."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.losses import (
    RowMargins,
    SampledSoftmax,
    adaptive_margin,
    chunked_softmax,
    largest_margin,
)
from tfcsmf.losses.chunked_softmax import _CHUNK_SCORES, _MIN_ROWS, _Shift

ROWS, COLUMNS, D = 250, 40_000, 5  # 104, 104 and 42 rows at a time
RNG = np.random.default_rng(0)
QUERIES = tf.constant(RNG.normal(size=[ROWS, D]), tf.float32)
CANDIDATES = tf.constant(RNG.normal(size=[COLUMNS, D]), tf.float32)
BIAS = tf.constant(RNG.normal(size=COLUMNS), tf.float32)
WEIGHTS = tf.constant(RNG.random(ROWS), tf.float32)
PAIRS = np.unique(
    np.stack([RNG.integers(0, ROWS, 900), RNG.integers(0, COLUMNS, 900)], 1), axis=0
).astype(np.int32)
PAIRS = np.concatenate([PAIRS[PAIRS[:, 0] < 70], PAIRS[PAIRS[:, 0] > 130]])


def plain(
    queries, candidates, column_bias=0.0, positive_bias=0.0, weight=1.0, pairs=None
):
    scores = tf.matmul(queries, candidates, transpose_b=True)
    positives = tf.linalg.diag_part(scores[:, : len(scores)]) + positive_bias
    scores += column_bias
    if pairs is not None:
        hidden = tf.fill([len(pairs)], -np.inf)
        scores = tf.tensor_scatter_nd_update(scores, pairs, hidden)
    scores = tf.linalg.set_diag(scores, positives)
    return tf.reduce_sum(weight * (tf.reduce_logsumexp(scores, axis=1) - positives))


def value_and_gradients(function):
    with tf.GradientTape() as tape:
        tape.watch([QUERIES, CANDIDATES])
        loss = 3.0 * function()  # an upstream gradient other than 1
    return loss, *tape.gradient(loss, [QUERIES, CANDIDATES])


def fits(scale, *biases):
    return bool(_Shift.of(scale * QUERIES, CANDIDATES, *biases).fits)


@pytest.mark.parametrize("scale", [1.0, 0.3])  # shifted by rows, by one number
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_definition_in_every_chunk(compiled, scale):
    assert ROWS > 2 * max(_MIN_ROWS, _CHUNK_SCORES // COLUMNS)
    arguments = (BIAS, BIAS[:ROWS], WEIGHTS, tf.constant(PAIRS))
    assert fits(scale, BIAS) == (scale < 1)
    function = tf.function(chunked_softmax) if compiled else chunked_softmax
    mine, expected, bare = (
        value_and_gradients(lambda f=f, a=a: f(scale * QUERIES, CANDIDATES, *a))
        for f, a in ((function, arguments), (plain, arguments), (plain, arguments[:3]))
    )
    assert abs(float(bare[0]) / float(expected[0]) - 1) > 1e-6  # the pairs matter
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_exponentials_of_shifted_scores_are_as_exact_as_any():
    """What is shifted by one number loses nothing at the ends of its span."""
    lengths = np.linspace(0.1, 1.0, 64)[:, np.newaxis]
    queries = tf.constant(RNG.choice([-3.0, 3.0], [64, 2]) * lengths, tf.float32)
    candidates = tf.constant(RNG.choice([-3.0, 3.0], [500, 2]), tf.float32)
    bias = RNG.choice([-1.0, 0.0, -1e9], 500, p=[0.4, 0.4, 0.2])
    bias = tf.constant(np.where(np.arange(500) < 64, 0.0, bias), tf.float32)
    assert _Shift.of(queries, candidates, bias).fits
    with tf.GradientTape() as tape:
        tape.watch([queries, candidates])
        loss = chunked_softmax(queries, candidates, bias)
    mine = loss, *tape.gradient(loss, [queries, candidates])
    wide = [tf.cast(values, tf.float64) for values in (queries, candidates, bias)]
    with tf.GradientTape() as tape:
        tape.watch(wide[:2])
        loss = plain(*wide)
    exact = loss, *tape.gradient(loss, wide[:2])
    for a, b in zip(mine, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_pair_may_be_listed_again(scale):
    """As an excluded pair, or because it is a positive."""
    own = np.stack([np.arange(ROWS), np.arange(ROWS)], axis=1).astype(np.int32)
    again = np.concatenate([PAIRS, PAIRS[::2], PAIRS[::3], own])
    again = again[np.argsort(again[:, 0], kind="stable")]
    once, more = (
        value_and_gradients(
            lambda p=pairs: chunked_softmax(
                scale * QUERIES, CANDIDATES, BIAS, excluded_pairs=tf.constant(p)
            )
        )
        for pairs in (PAIRS, again)
    )
    for a, b in zip(more, once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [1, 2, 3, 7, 11])
def test_nothing_is_left_of_a_pair_however_often_it_is_listed(times):
    """Not even what rounding leaves, which can be more than the positive's share."""
    pairs = tf.constant([[0, 1]] * times)
    for length in np.linspace(3.0, 4.4, 15, dtype=np.float32):
        queries = tf.constant([[length]])
        candidates = tf.constant([[-length], [length]])
        assert _Shift.of(queries, candidates).fits
        with tf.GradientTape() as tape:
            tape.watch([queries, candidates])
            loss = chunked_softmax(queries, candidates, excluded_pairs=pairs)
        for value in (loss, *tape.gradient(loss, [queries, candidates])):
            np.testing.assert_allclose(value, 0.0, atol=1e-5)


@pytest.mark.parametrize("change", ["queries", "candidates", "bias", "positive_bias"])
def test_what_spans_too_much_is_shifted_by_rows(change):
    """And what is not a number stays none."""
    given = {
        "queries": 0.3 * QUERIES,
        "candidates": CANDIDATES,
        "bias": BIAS,
        "positive_bias": BIAS[:ROWS],
    }
    assert _Shift.of(*given.values()).fits
    for value in (60.0, np.nan):
        wrong = given | {
            change: tf.concat([given[change][:-1], given[change][-1:] + value], 0)
        }
        assert np.isnan(value) or not _Shift.of(*wrong.values()).fits
        with tf.GradientTape() as tape:
            tape.watch(wrong["queries"])
            loss = chunked_softmax(*wrong.values())
        assert np.isnan(float(loss)) == np.isnan(value)
        if not np.isnan(value):
            expected = plain(*wrong.values())
            np.testing.assert_allclose(float(loss), float(expected), rtol=1e-5)


@pytest.mark.parametrize("form", ["confusable", "order"])
def test_a_margin_that_is_a_factor_equals_one_that_is_added(form):
    upstream = tf.constant(RNG.normal(size=[ROWS, COLUMNS]), tf.float32)
    positives = tf.linalg.diag_part(upstream[:, :ROWS])
    greatest = largest_margin(form, 2.0, 3.0)

    def part(start, stop):
        own = positives[start:stop]
        return adaptive_margin(upstream[start:stop], form, 2.0, 3.0, positives=own)

    def loss(**options):
        return chunked_softmax(
            *(0.3 * QUERIES, CANDIDATES, BIAS, BIAS[:ROWS], WEIGHTS, PAIRS),
            **options,
        )

    assert fits(0.3, BIAS)
    assert 0.5 * greatest < np.max(part(0, ROWS)) <= greatest
    factor, added, bare = (
        value_and_gradients(lambda options=options: loss(**options))
        for options in (
            {"margin": RowMargins(part, greatest)},
            {"margin": RowMargins(part)},
            {},
        )
    )
    for a, b in zip(factor, added, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    assert float(factor[0]) > 1.01 * float(bare[0])


def test_a_margin_too_great_for_a_factor_is_added():
    def loss(strength):
        return chunked_softmax(
            *(0.3 * QUERIES[:3], CANDIDATES[:4]),
            margin=RowMargins(
                lambda start, stop: tf.fill([stop - start, 4], strength), strength
            ),
        )

    # The difference to the positive is nearly all margin: three losses of about 200.
    assert float(loss(200.0)) == pytest.approx(600.0, rel=0.02)
    assert 0.0 < float(loss(1.0)) < 20.0


def test_pairs_equal_a_mask_and_functions_equal_matrices():
    mask = np.ones([ROWS, COLUMNS], bool)
    mask[tuple(PAIRS.T)] = False
    upstream = tf.constant(RNG.normal(size=[ROWS, COLUMNS]), tf.float32)
    margin = adaptive_margin(upstream, "order", 0.5)
    positives = tf.linalg.diag_part(upstream[:, :ROWS])

    def part(start, stop):
        return adaptive_margin(
            upstream[start:stop], "order", 0.5, positives=positives[start:stop]
        )

    task = SampledSoftmax()
    results = [
        value_and_gradients(lambda a=arguments: task(QUERIES, CANDIDATES, **a))
        for arguments in (
            {"score_mask": tf.constant(mask), "margin": margin},
            {"excluded_pairs": tf.constant(PAIRS), "margin": RowMargins(part)},
            {"excluded_pairs": tf.constant(PAIRS)},
        )
    ]
    for a, b in zip(results[0], results[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(results[2][0]) < float(results[0][0])


def test_the_hardest_negatives_leave_excluded_pairs_out_as_well():
    few = tf.constant(RNG.normal(size=[9, D]), tf.float32)
    queries = QUERIES[:4]
    top = np.argsort(-(queries @ tf.transpose(few)).numpy()[1])
    pairs = tf.constant([[1, j] for j in top[:3] if j != 1], tf.int32)
    mask = np.ones([4, 9], bool)
    mask[tuple(pairs.numpy().T)] = False
    task = SampledSoftmax(num_hard_negatives=2)
    by_pairs = task(queries, few, excluded_pairs=pairs)
    assert float(by_pairs) == float(task(queries, few, score_mask=tf.constant(mask)))
    assert float(by_pairs) < float(task(queries, few))


def test_positives_can_be_anywhere():
    columns = RNG.integers(0, COLUMNS, ROWS).astype(np.int32)
    columns[1:4] = columns[0]  # of several rows
    pairs = tf.constant(PAIRS)

    def listed_once(queries, candidates):
        positives = tf.stack([tf.range(ROWS), columns], axis=1)
        return chunked_softmax(
            queries, candidates, BIAS, None, WEIGHTS, pairs, positives=positives
        )

    def listed_first(queries, candidates):
        # The positives once more, in front, where no negative may be.
        own = tf.gather(candidates, columns)
        hidden = tf.fill([ROWS], -1e9)
        shifted = pairs + [0, ROWS]
        twice = tf.stack([tf.range(ROWS), columns + ROWS], axis=1)
        return plain(
            queries,
            tf.concat([own, candidates], axis=0),
            tf.concat([hidden, BIAS], axis=0),
            weight=WEIGHTS,
            pairs=tf.concat([shifted, twice], axis=0),
        )

    mine = value_and_gradients(lambda: listed_once(QUERIES, CANDIDATES))
    expected = value_and_gradients(lambda: listed_first(QUERIES, CANDIDATES))
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_no_rows():
    loss = chunked_softmax(QUERIES[:0], CANDIDATES)
    assert float(loss) == 0.0


def test_never_holds_the_whole_matrix():
    @tf.function
    def compute(queries, candidates):
        with tf.GradientTape() as tape:
            tape.watch([queries, candidates])
            loss = chunked_softmax(queries, candidates)
        return tape.gradient(loss, [queries, candidates])

    rows = columns = 30_000  # 3.6 GB of scores in one piece
    vectors = tf.constant(RNG.normal(size=[rows, 2]), tf.float32)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradients = compute(vectors, vectors[:columns])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.isfinite(gradients[0].numpy()).all()
    assert (after - before) * 1024 < 0.2 * rows * columns * 4
