"""The logQ correction on a toy corpus whose full softmax is known."""

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.losses import SampledSoftmax
from tfcsmf.negatives import mixed_probability

ITEMS = 6
SKEWED = np.array([0.5, 0.25, 0.12, 0.07, 0.04, 0.02])
LOGITS = np.array([0.3, -0.5, 1.0, 0.0, 1.5, -1.0])
IN_BATCH, UNIFORM = 8, 6


def draw(rng, batches, positive, sources):
    """Columns of many batches, [batches, 1 + draws]; the positive comes first."""
    parts = [np.full([batches, 1], positive)]
    for count, distribution in sources:
        parts.append(rng.choice(ITEMS, [batches, count], p=distribution))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    "sources",
    [
        [(IN_BATCH, SKEWED)],
        [(UNIFORM, None)],
        [(IN_BATCH, SKEWED), (UNIFORM, None)],
    ],
    ids=["in-batch", "uniform", "mixed"],
)
@pytest.mark.parametrize("positive", [0, 4])
def test_denominator_is_unbiased(sources, positive):
    rng = np.random.default_rng(positive)
    columns = draw(rng, 12_000, positive, sources)
    probability = mixed_probability(sources, ITEMS)
    task = SampledSoftmax(correct_positives=False, remove_accidental_hits=True)

    def denominator(items):
        # One row: exp(loss) * exp(s_positive) is the denominator it used.
        loss = task(
            tf.ones([1, 1]),
            tf.gather(tf.constant(LOGITS[:, None], tf.float32), items),
            candidate_sampling_probability=tf.gather(probability, items),
            candidate_ids=items,
        )
        return tf.exp(loss + np.float32(LOGITS[positive]))

    sampled = tf.vectorized_map(denominator, tf.constant(columns)).numpy()
    full = np.exp(LOGITS).sum()
    error = sampled.std() / np.sqrt(len(sampled))
    assert sampled.std() > 0.1
    assert abs(sampled.mean() - full) < 4 * error
    assert error < 0.02 * full  # or the test would say nothing


def train(corrected, correct_positives):
    """Fits free item logits to a skewed log by in-batch softmax."""
    rng = np.random.default_rng(0)
    task = SampledSoftmax(
        correct_positives=correct_positives, remove_accidental_hits=True
    )
    logits = tf.Variable(tf.zeros([ITEMS, 1]))
    rows = 64
    optimizer = tf.keras.optimizers.SGD(1.0)
    average = np.zeros(ITEMS)

    @tf.function
    def step(items):
        with tf.GradientTape() as tape:
            table = tf.convert_to_tensor(logits)
            probability = tf.gather(tf.constant(SKEWED, tf.float32), items)
            loss = task(
                tf.ones([rows, 1]),
                tf.gather(table, items),
                candidate_sampling_probability=probability if corrected else None,
                candidate_ids=items,
            )
            loss = loss / rows
        gradient = tape.gradient(loss, logits)
        optimizer.apply_gradients([(gradient, logits)])

    for number in range(1200):
        step(tf.constant(rng.choice(ITEMS, rows, p=SKEWED)))
        if number >= 600:
            average += logits.numpy()[:, 0] / 600
    return average - average.mean()


def test_corrected_training_recovers_log_p_and_uncorrected_does_not():
    truth = np.log(SKEWED) - np.log(SKEWED).mean()
    np.testing.assert_allclose(train(True, False), truth, atol=0.25)
    uncorrected = train(False, False)
    # Items are met as negatives as often as positives, so popularity cancels and
    # the popular ones rank too low. (Not so item 0, half of whose negatives
    # are itself and removed.)
    assert np.ptp(uncorrected[1:]) < 0.2 * np.ptp(truth[1:])


def test_the_sign_rare_negatives_count_more():
    task = SampledSoftmax(correct_positives=False)
    candidates = tf.constant([[0.0], [0.0]])
    rare, popular = (
        float(
            task(
                tf.ones([1, 1]),
                candidates,
                candidate_sampling_probability=tf.constant([0.1, q]),
            )
        )
        for q in (0.01, 0.5)
    )
    assert rare == pytest.approx(np.log(1 + 1 / 0.01))
    assert popular == pytest.approx(np.log(1 + 1 / 0.5))
