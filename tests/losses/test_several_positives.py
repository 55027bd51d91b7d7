"""Rows with several positives: the loss of one row per positive, only cheaper."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.losses import SampledSoftmax, adaptive_margin, chunked_softmax
from tfcsmf.negatives import mixed_probability

# The package's attribute of that name is the function.
MODULE = importlib.import_module("tfcsmf.losses.chunked_softmax")

ROWS, COLUMNS, D = 11, 9, 4
RNG = np.random.default_rng(1)
QUERIES = tf.constant(RNG.normal(size=[ROWS, D]))
CANDIDATES = tf.constant(RNG.normal(size=[COLUMNS, D]))
FLOATS = tf.cast(QUERIES, tf.float32), tf.cast(CANDIDATES, tf.float32)  # for tasks
BIAS = RNG.normal(size=COLUMNS)
PROBABILITY = RNG.dirichlet(np.ones(COLUMNS))
COUNTS = RNG.integers(1, 4, COLUMNS)
MARGIN = RNG.normal(size=[ROWS, COLUMNS])
# Rows 0, 4 and the last have none, row 5 has every column but one.
DRAWN = RNG.random([ROWS, COLUMNS]) < 0.3
DRAWN[[0, 4, -1]] = False
DRAWN[5] = np.arange(COLUMNS) != 2
POSITIVES = np.argwhere(DRAWN).astype(np.int32)
N = len(POSITIVES)
WEIGHTS = RNG.random(N)
POSITIVE_BIAS = RNG.normal(size=N)
# Some excluded pairs are positives, as known positives of a user are.
EXCLUDED = np.argwhere(RNG.random([ROWS, COLUMNS]) < 0.25).astype(np.int32)


def one_row_per_positive(counts):
    """Rows, columns and excluded pairs of the diagonal form.

    Its first n columns are the positives, no negatives of any other row; then comes
    every column as often as it counts.
    """
    copies = np.repeat(np.arange(COLUMNS), counts)
    left_out = DRAWN.copy()
    left_out[tuple(EXCLUDED.T)] = True
    other = np.concatenate(
        [~np.eye(N, dtype=bool), left_out[POSITIVES[:, 0]][:, copies]], axis=1
    )
    columns = np.concatenate([POSITIVES[:, 1], copies])
    return POSITIVES[:, 0], columns, np.argwhere(other).astype(np.int32)


def value_and_gradients(function, queries=QUERIES, candidates=CANDIDATES):
    with tf.GradientTape() as tape:
        tape.watch([queries, candidates])
        loss = 3.0 * function(queries, candidates)
    return loss, *(
        tf.convert_to_tensor(part)
        for part in tape.gradient(loss, [queries, candidates])
    )


def assert_close(mine, expected, **tolerances):
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


def assert_same(mine, expected):
    for a, b in zip(mine, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=[1, 3, 64], ids=lambda rows: f"{rows} rows a chunk")
def chunks(request, monkeypatch):
    monkeypatch.setattr(MODULE, "_MIN_ROWS", 1)
    monkeypatch.setattr(MODULE, "_CHUNK_SCORES", request.param * COLUMNS)


def test_by_hand():
    # exp(score) of every row is 1, 2, 3, 4.
    queries = tf.ones([3, 1], tf.float64)
    vectors = np.log([[1.0], [2.0], [3.0], [4.0]])

    def loss_of(queries, candidates):
        return chunked_softmax(
            queries,
            candidates,
            sample_weight=tf.constant([1.0, 1.0, 2.0]),
            excluded_pairs=tf.constant([[0, 3], [1, 1]]),
            positives=tf.constant([[0, 0], [0, 1], [2, 3]]),
        )

    loss, query_gradient, candidate_gradient = value_and_gradients(
        loss_of, queries, tf.constant(vectors)
    )
    # Row 0: column 2 is the only negative of both. Row 2: 1 + 2 + 3 against 4.
    expected = np.log(4 / 1) + np.log(5 / 2) + 2 * np.log(10 / 4)
    assert float(loss) == pytest.approx(3 * expected)
    columns = 3 * np.array(
        [1 / 4 - 1 + 2 / 10, 2 / 5 - 1 + 4 / 10, 3 / 4 + 3 / 5 + 6 / 10, 8 / 10 - 2]
    )
    np.testing.assert_allclose(candidate_gradient[:, 0], columns)
    first = np.dot([1 / 4 - 1, 2 / 5 - 1, 3 / 4 + 3 / 5, 0], vectors)[0]
    last = np.dot([2 / 10, 4 / 10, 6 / 10, 8 / 10 - 2], vectors)[0]
    np.testing.assert_allclose(query_gradient[:, 0], [3 * first, 0.0, 3 * last])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("chunks")
def test_equals_one_row_per_positive(compiled):
    rows, columns, pairs = one_row_per_positive(COUNTS)
    one_each = BIAS[columns]

    def shared(queries, candidates):
        return chunked_softmax(
            queries,
            candidates,
            tf.constant(BIAS + np.log(COUNTS)),
            tf.constant(POSITIVE_BIAS),
            tf.constant(WEIGHTS),
            tf.constant(EXCLUDED),
            lambda scores, start, stop: scores + tf.constant(MARGIN)[start:stop],
            tf.constant(POSITIVES),
        )

    def expanded(queries, candidates):
        margin = tf.constant(MARGIN[rows][:, columns])
        return chunked_softmax(
            tf.gather(queries, rows),
            tf.gather(candidates, columns),
            tf.constant(one_each),
            tf.constant(POSITIVE_BIAS),
            tf.constant(WEIGHTS),
            tf.constant(pairs),
            lambda scores, start, stop: scores + margin[start:stop],
        )

    mine = value_and_gradients(tf.function(shared) if compiled else shared)
    expected = value_and_gradients(expanded)
    assert float(expected[0]) > 1.0
    assert_close(mine, expected, rtol=1e-10, atol=1e-12)
    for row in (0, 4, ROWS - 1):
        np.testing.assert_array_equal(mine[1][row], np.zeros(D))


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("form", ["none", "confusable", "order"])
@pytest.mark.usefixtures("chunks")
def test_task_equals_one_row_per_positive(correct, form):
    rows, columns, pairs = one_row_per_positive(COUNTS)
    task = SampledSoftmax(correct_positives=correct, temperature=0.7)
    upstream = tf.constant(MARGIN, tf.float32)
    margin = adaptive_margin(upstream, form, 0.5, positives=tf.reduce_mean(upstream, 1))

    def shared(queries, candidates):
        return task(
            queries,
            candidates,
            sample_weight=tf.constant(WEIGHTS),
            candidate_sampling_probability=tf.constant(PROBABILITY, tf.float32),
            margin=margin,
            excluded_pairs=tf.constant(EXCLUDED),
            positives=tf.constant(POSITIVES),
            candidate_counts=tf.constant(COUNTS, tf.float32),
        )

    # Copies as the diagonal form counts draws: all columns but one.
    draws = 1.0 if correct else (COUNTS.sum() - N / ROWS) / (len(columns) - 1)

    def expanded(queries, candidates):
        wide = None
        if margin is not None:
            wide = tf.gather(tf.gather(margin, rows), columns, axis=1)
        return task(
            tf.gather(queries, rows),
            tf.gather(candidates, columns),
            sample_weight=tf.constant(WEIGHTS),
            candidate_sampling_probability=tf.constant(
                PROBABILITY[columns] * draws, tf.float32
            ),
            margin=wide,
            excluded_pairs=tf.constant(pairs),
        )

    mine = value_and_gradients(shared, *FLOATS)
    expected = value_and_gradients(expanded, *FLOATS)
    assert_close(mine, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("probability", [None, tf.constant(PROBABILITY, tf.float32)])
@pytest.mark.parametrize("correct", [True, False])
def test_listed_once_equals_listed_repeatedly(correct, probability):
    copies = np.repeat(np.arange(COLUMNS), COUNTS)
    left_out = DRAWN.copy()
    left_out[tuple(EXCLUDED.T)] = True
    first = np.cumsum(COUNTS) - COUNTS
    task = SampledSoftmax(correct_positives=correct)

    def once(queries, candidates):
        return task(
            queries,
            candidates,
            candidate_sampling_probability=probability,
            excluded_pairs=tf.constant(EXCLUDED),
            positives=tf.constant(POSITIVES),
            candidate_counts=tf.constant(COUNTS, tf.float32),
        )

    def repeatedly(queries, candidates):
        return task(
            queries,
            tf.gather(candidates, copies),
            candidate_sampling_probability=None
            if probability is None
            else tf.gather(probability, copies),
            excluded_pairs=np.argwhere(left_out[:, copies]).astype(np.int32),
            positives=np.stack([POSITIVES[:, 0], first[POSITIVES[:, 1]]], 1).astype(
                np.int32
            ),
        )

    mine = value_and_gradients(once, *FLOATS)
    expected = value_and_gradients(repeatedly, *FLOATS)
    assert_close(mine, expected, rtol=2e-5, atol=1e-5)


def test_a_whole_catalogue_has_no_bias():
    scores = (QUERIES @ tf.transpose(CANDIDATES)).numpy()
    expected = 0.0
    for row, column in POSITIVES:
        negatives = np.exp(scores[row])[~DRAWN[row]].sum()
        own = scores[row, column]
        expected += np.log(np.exp(own) + negatives) - own
    for correct in (True, False):
        loss = SampledSoftmax(correct_positives=correct)(
            *FLOATS, positives=tf.constant(POSITIVES)
        )
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_diagonal_listed_is_the_diagonal_bit_for_bit():
    rng = np.random.default_rng(2)
    queries = tf.constant(rng.normal(size=[150, 16]), tf.float32)
    candidates = tf.constant(rng.normal(size=[400, 16]), tf.float32)
    probability = tf.constant(rng.dirichlet(np.ones(400)), tf.float32)
    diagonal = tf.stack([tf.range(150)] * 2, axis=1)
    for correct in (True, False):
        task = SampledSoftmax(correct_positives=correct)
        plain, listed = (
            value_and_gradients(
                lambda q, c, p=positives, task=task: task(
                    q, c, candidate_sampling_probability=probability, positives=p
                ),
                queries,
                candidates,
            )
            for positives in (None, diagonal)
        )
        assert_same(plain, listed)


def test_numeric_gradient():
    weights = tf.constant(WEIGHTS)

    def loss_of(queries, candidates):
        return chunked_softmax(
            queries,
            candidates,
            sample_weight=weights,
            excluded_pairs=tf.constant(EXCLUDED),
            positives=tf.constant(POSITIVES),
        )

    theory, numeric = tf.test.compute_gradient(loss_of, [QUERIES, CANDIDATES], 1e-4)
    for a, b in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_two_calls_are_bit_equal():
    rng = np.random.default_rng(3)
    queries = tf.constant(rng.normal(size=[600, 32]), tf.float32)
    candidates = tf.constant(rng.normal(size=[900, 32]), tf.float32)
    rows = np.sort(rng.integers(0, 600, 20_000))
    columns = np.minimum(rng.geometric(0.02, 20_000), 899)  # some in most rows
    positives = tf.constant(np.stack([rows, columns], 1), tf.int32)
    compute = tf.function(
        lambda q, c: value_and_gradients(
            lambda q, c: chunked_softmax(q, c, positives=positives), q, c
        )
    )
    first = compute(queries, candidates)
    for _ in range(5):
        assert_same(compute(queries, candidates), first)


@pytest.mark.usefixtures("chunks")
def test_positives_far_apart_stay_finite():
    # Scores 200, -200 and 0; exp() of their differences leaves float32.
    queries = tf.constant([[1.0], [0.0], [1.0]])
    candidates = tf.constant([[200.0], [-200.0], [0.0]])
    positives = tf.constant([[0, 0], [0, 1], [2, 0], [2, 1], [2, 2]])
    loss, query_gradient, candidate_gradient = value_and_gradients(
        lambda q, c: chunked_softmax(q, c, positives=positives), queries, candidates
    )
    # Only -200 against the negative 0 costs anything; row 2 has no negatives.
    assert float(loss) == pytest.approx(600.0)
    np.testing.assert_allclose(query_gradient[:, 0], [600.0, 0.0, 0.0])
    np.testing.assert_allclose(candidate_gradient[:, 0], [0.0, -3.0, 3.0])


@pytest.mark.parametrize("rows", [0, 3])
def test_without_positives_nothing_moves(rows):
    task = SampledSoftmax(correct_positives=False)
    loss, *gradients = value_and_gradients(
        lambda q, c: task(
            q,
            c,
            candidate_sampling_probability=tf.constant(PROBABILITY, tf.float32),
            positives=tf.zeros([0, 2], tf.int32),
        ),
        FLOATS[0][:rows],
        FLOATS[1],
    )
    assert float(loss) == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_denominators_are_unbiased():
    items, popular, uniform = 6, 8, 6
    skewed = np.array([0.5, 0.25, 0.12, 0.07, 0.04, 0.02])
    logits = np.array([0.3, -0.5, 1.0, 0.0, 1.5, -1.0])
    own, batches = np.array([0, 4]), 4_000
    rng = np.random.default_rng(0)
    # Every batch is one row: its two positives, then draws; items are listed once.
    counts = rng.multinomial(popular, skewed, batches)
    counts += rng.multinomial(uniform, np.full(items, 1 / items), batches)
    counts[:, own] += 1
    sources = [(popular, skewed), (uniform, None)]
    probability = mixed_probability(sources, items)
    task = SampledSoftmax(correct_positives=False)

    @tf.function
    def denominators(counts):
        def of(counts):
            present = tf.where(counts > 0)[:, 0]
            number = tf.cumsum(tf.cast(counts > 0, tf.int32), exclusive=True)
            return [
                task(
                    tf.ones([1, 1]),
                    tf.gather(tf.constant(logits[:, None], tf.float32), present),
                    sample_weight=tf.one_hot(which, 2),
                    candidate_sampling_probability=tf.gather(probability, present),
                    positives=tf.stack([[0, 0], tf.gather(number, own)], axis=1),
                    candidate_counts=tf.gather(counts, present),
                )
                for which in range(2)
            ]

        losses = tf.map_fn(of, counts, fn_output_signature=[tf.float32] * 2)
        return tf.exp(tf.stack(losses, 1) + np.float32(logits[own]))

    sampled = denominators(tf.constant(counts, tf.float32)).numpy()
    others = np.exp(np.delete(logits, own)).sum()
    error = sampled.std(axis=0) / np.sqrt(batches)
    full = np.exp(logits[own]) + others
    assert (np.abs(sampled.mean(axis=0) - full) < 4 * error).all()
    assert (error < 0.02 * full).all()  # or the test would say nothing


def test_a_column_that_counts_nothing_is_no_negative():
    counts = np.ones(COLUMNS, np.float32)
    counts[3] = 0.0
    column = np.array([[r, 3] for r in range(ROWS)], np.int32)
    task = SampledSoftmax()
    by_count, by_pair = (
        value_and_gradients(
            lambda q, c, a=arguments: task(q, c, positives=POSITIVES, **a), *FLOATS
        )
        for arguments in (
            {"candidate_counts": tf.constant(counts)},
            {"excluded_pairs": column},
        )
    )
    assert_close(by_count, by_pair, rtol=1e-6, atol=1e-6)


def test_corpus_metrics_see_every_positive():
    corpus = tfrs.metrics.FactorizedTopK(
        tf.data.Dataset.from_tensor_slices(FLOATS[1]).batch(4), ks=(2,)
    )
    SampledSoftmax(metrics=corpus)(*FLOATS, positives=POSITIVES)
    scores = (QUERIES @ tf.transpose(CANDIDATES)).numpy()
    rank = (-scores).argsort(axis=1).argsort(axis=1)
    expected = np.mean(rank[tuple(POSITIVES.T)] < 2)
    assert 0 < expected < 1
    assert float(corpus.result()[0]) == pytest.approx(expected)


def test_unsupported_combinations():
    accuracy = tf.keras.metrics.CategoricalAccuracy()
    for options, name in (
        ({"num_hard_negatives": 2}, "num_hard_negatives"),
        ({"remove_accidental_hits": True}, "remove_accidental_hits"),
        ({"batch_metrics": [accuracy]}, "batch metrics"),
    ):
        with pytest.raises(ValueError, match=f"should not be combined with {name}"):
            SampledSoftmax(**options)(*FLOATS, positives=POSITIVES)
    task = SampledSoftmax(batch_metrics=[accuracy])
    task(*FLOATS, positives=POSITIVES, compute_batch_metrics=False)
