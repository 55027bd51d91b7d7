"""SampledSoftmax: equal to TFRS where TFRS is right, masks, margins, gradients."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfcsmf.losses import SampledSoftmax, adaptive_margin

ROWS, COLUMNS = 4, 7
RNG = np.random.default_rng(0)
QUERIES = tf.constant(RNG.normal(size=[ROWS, 3]), tf.float32)
CANDIDATES = tf.constant(RNG.normal(size=[COLUMNS, 3]), tf.float32)
SCORES = QUERIES.numpy() @ CANDIDATES.numpy().T
IDS = tf.constant([5, 6, 5, 8, 6, 9, 5])  # columns 2, 6 hit row 0, ...
PROBABILITY = tf.constant([0.3, 0.01, 0.3, 2e-6, 0.01, 0.05, 0.3])
WEIGHTS = tf.constant([1.0, 0.5, 2.0, 0.0])
MASK = tf.constant(RNG.random([ROWS, COLUMNS]) < 0.6) | tf.eye(
    ROWS, COLUMNS, dtype=tf.bool
)

CASES = {
    "plain": ({}, {}),
    "temperature": ({"temperature": 0.3}, {}),
    "probability": ({}, {"candidate_sampling_probability": PROBABILITY}),
    "hits": ({"remove_accidental_hits": True}, {"candidate_ids": IDS}),
    "mask": ({}, {"score_mask": MASK}),
    "hard": ({"num_hard_negatives": 2}, {}),
    "more hard ones than there are": ({"num_hard_negatives": 50}, {}),
    "weights": ({}, {"sample_weight": WEIGHTS}),
    "all": (
        {"temperature": 2.0, "remove_accidental_hits": True, "num_hard_negatives": 1},
        {
            "candidate_sampling_probability": PROBABILITY,
            "candidate_ids": IDS,
            "score_mask": MASK,
            "sample_weight": WEIGHTS,
        },
    ),
}


def value_and_gradients(task, **arguments):
    with tf.GradientTape() as tape:
        tape.watch([QUERIES, CANDIDATES])
        loss = task(QUERIES, CANDIDATES, **arguments)
    return loss, tape.gradient(loss, [QUERIES, CANDIDATES])


@pytest.mark.parametrize("case", list(CASES))
def test_equals_tfrs(case):
    options, arguments = CASES[case]
    mine = value_and_gradients(SampledSoftmax(**options), **arguments)
    theirs = value_and_gradients(tfrs.tasks.Retrieval(**options), **arguments)
    assert float(theirs[0]) > 0.01
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-5)
    for a, b in zip(mine[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_square_batches_and_strings_as_ids():
    ids = tf.constant(["a", "b", "a", "c"])
    options = {"remove_accidental_hits": True}
    mine, theirs = (
        task(**options)(QUERIES, CANDIDATES[:ROWS], candidate_ids=ids)
        for task in (SampledSoftmax, tfrs.tasks.Retrieval)
    )
    assert float(mine) == pytest.approx(float(theirs), rel=1e-6)


def test_probabilities_are_not_clipped():
    probability = tf.constant([0.5, 1e-9, 1e-12, 0.1, 0.2, 1e-8, 0.2])
    corrected = SCORES - np.log(probability.numpy())
    expected = sum(
        np.log(np.exp(row).sum()) - row[r] for r, row in enumerate(corrected[:ROWS])
    )
    arguments = {"candidate_sampling_probability": probability}
    loss = SampledSoftmax()(QUERIES, CANDIDATES, **arguments)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    clipped = tfrs.tasks.Retrieval()(QUERIES, CANDIDATES, **arguments)
    assert abs(float(clipped) - expected) > 1.0


def test_uncorrected_positives_by_hand():
    probability = PROBABILITY.numpy().astype(np.float64)
    task = SampledSoftmax(correct_positives=False, temperature=0.5)
    loss = task(QUERIES, CANDIDATES, candidate_sampling_probability=PROBABILITY)
    expected = 0.0
    for r in range(ROWS):
        scores = SCORES[r].astype(np.float64) / 0.5
        others = np.arange(COLUMNS) != r
        counts = (COLUMNS - 1) * probability
        total = np.exp(scores[r]) + (np.exp(scores) / counts)[others].sum()
        expected += np.log(total) - scores[r]
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_mask_or_hit_never_removes_the_positive():
    nothing = tf.zeros([ROWS, COLUMNS], tf.bool)
    loss, gradients = value_and_gradients(SampledSoftmax(), score_mask=nothing)
    assert float(loss) == 0.0  # the positive alone: -log 1
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))

    off_diagonal = tf.ones([ROWS, COLUMNS], tf.bool) ^ tf.eye(
        ROWS, COLUMNS, dtype=tf.bool
    )
    everything = tf.ones([ROWS, COLUMNS], tf.bool)
    masked = value_and_gradients(SampledSoftmax(), score_mask=off_diagonal)
    plain = value_and_gradients(SampledSoftmax(), score_mask=everything)
    assert float(masked[0]) == float(plain[0])
    for a, b in zip(masked[1], plain[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"num_hard_negatives": 3}])
@pytest.mark.parametrize("correct", [True, False])
def test_finite_under_full_masks_hits_and_tiny_probabilities(options, correct):
    task = SampledSoftmax(
        remove_accidental_hits=True, correct_positives=correct, **options
    )
    arguments = {
        "candidate_ids": tf.fill([COLUMNS], 3),
        "score_mask": tf.zeros([ROWS, COLUMNS], tf.bool),
        "candidate_sampling_probability": tf.fill([COLUMNS], np.float32(1.2e-38)),
    }
    loss, gradients = value_and_gradients(task, **arguments)
    assert float(loss) == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_masked_columns_have_no_weight_at_all():
    keep = [0, 1, 2, 3, 5]
    mask = np.zeros([ROWS, COLUMNS], bool)
    mask[:, keep] = True
    loss = SampledSoftmax()(QUERIES, CANDIDATES, score_mask=tf.constant(mask))
    alone = SampledSoftmax()(QUERIES, tf.gather(CANDIDATES, keep))
    assert float(loss) == pytest.approx(float(alone), rel=1e-6)
    changed = CANDIDATES + 9.0 * tf.constant(~mask[0], tf.float32)[:, tf.newaxis]
    other = SampledSoftmax()(QUERIES, changed, score_mask=tf.constant(mask))
    assert float(other) == float(loss)


def test_margin_of_strength_zero_is_bit_equal_to_the_plain_loss():
    upstream = tf.constant(RNG.normal(size=[ROWS, COLUMNS]), tf.float32)
    plain = value_and_gradients(SampledSoftmax())
    for form in ("confusable", "order", "none"):
        margin = adaptive_margin(upstream, form, 0.0)
        got = value_and_gradients(SampledSoftmax(), margin=margin)
        np.testing.assert_array_equal(got[0], plain[0])
        for a, b in zip(got[1], plain[1], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["confusable", "order"])
def test_margin_raises_the_loss_and_by_the_formula(form):
    upstream = tf.constant(RNG.normal(size=[ROWS, COLUMNS]), tf.float32)
    losses = []
    for strength in (0.0, 0.5, 2.0):
        margin = adaptive_margin(upstream, form, strength)
        losses.append(float(SampledSoftmax()(QUERIES, CANDIDATES, margin=margin)))
    assert losses[0] < losses[1] < losses[2]
    shifted = SCORES + margin.numpy()
    expected = sum(np.log(np.exp(shifted[r]).sum()) - SCORES[r, r] for r in range(ROWS))
    assert losses[2] == pytest.approx(expected, rel=1e-5)


def test_a_margin_on_the_positive_itself_is_ignored():
    margin = tf.eye(ROWS, COLUMNS) * 100.0
    none = tf.zeros([ROWS, COLUMNS])
    with_margin = SampledSoftmax()(QUERIES, CANDIDATES, margin=margin)
    without = SampledSoftmax()(QUERIES, CANDIDATES, margin=none)
    assert float(with_margin) == float(without)
    bare = float(SampledSoftmax()(QUERIES, CANDIDATES))
    assert float(without) == pytest.approx(bare, rel=1e-6)


def test_is_a_tfrs_task_with_its_metrics():
    mean = tf.keras.metrics.Mean()
    accuracy = tf.keras.metrics.CategoricalAccuracy()
    corpus = tfrs.metrics.FactorizedTopK(
        tf.data.Dataset.from_tensor_slices(CANDIDATES).batch(3), ks=(1,)
    )
    task = SampledSoftmax(metrics=corpus, loss_metrics=[mean], batch_metrics=[accuracy])
    assert isinstance(task, tfrs.tasks.Retrieval)
    loss = task(QUERIES, CANDIDATES)
    best = SCORES.argmax(axis=1) == np.arange(ROWS)
    assert float(mean.result()) == pytest.approx(float(loss))
    assert float(accuracy.result()) == pytest.approx(best.mean())
    assert float(corpus.result()[0]) == pytest.approx(best.mean())
    # Ids of extra negatives are no targets of the corpus metric.
    by_id = tfrs.metrics.FactorizedTopK(
        tfrs.layers.factorized_top_k.BruteForce(k=1).index(
            CANDIDATES, tf.constant([f"c{n}" for n in range(COLUMNS)])
        ),
        ks=(1,),
    )
    ids = tf.constant([f"c{n}" for n in range(COLUMNS)])
    SampledSoftmax(metrics=by_id)(QUERIES, CANDIDATES, candidate_ids=ids)
    assert float(by_id.result()[0]) == pytest.approx(best.mean())
    task(QUERIES[:1], CANDIDATES, compute_metrics=False, compute_batch_metrics=False)
    assert float(accuracy.result()) == pytest.approx(best.mean())


def test_errors():
    with pytest.raises(ValueError, match="`candidate_ids` should be given"):
        SampledSoftmax(remove_accidental_hits=True)(QUERIES, CANDIDATES)
    with pytest.raises(ValueError, match="`loss`"):
        SampledSoftmax(tf.keras.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="`loss`"):
        SampledSoftmax(loss=tf.keras.losses.MeanSquaredError())
