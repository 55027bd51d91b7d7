"""A positive's own negatives against explicit vectors, one by one."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfcsmf.losses import SampledSoftmax, chunked_softmax, own_negatives
from tfcsmf.losses.chunked_softmax import EXCLUDED
from tfcsmf.losses.own_negatives import POSITIVE, take_rows

PAIRS = [(0, 1), (2, 3), (POSITIVE, 2), (POSITIVE, 3)]


def case(seed, unit=False, n=5, m=4, d=6):
    rng = np.random.default_rng(seed)
    q, p = rng.normal(size=(2, n, d))
    e = rng.normal(size=(n, m, d))
    if unit:
        q, p, e = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, p, e))
    added = rng.normal(size=(n, m))
    mix = rng.uniform(-0.5, 1.5, size=(n, len(PAIRS)))
    return [tf.constant(x, tf.float32) for x in (q, p, e, added, mix)]


def explicit(q, p, e, added, mix, renormalize, weight):
    """Interpolates the vectors themselves and scores them."""
    total = []
    for r in range(len(q)):
        logits = [q[r] @ e[r, j] + added[r, j] for j in range(e.shape[1])]
        for k, (one, other) in enumerate(PAIRS):
            a = mix[r, k]
            x = p[r] if one == POSITIVE else e[r, one]
            y = e[r, other]
            vector = a * x + (1 - a) * y
            if renormalize:
                length = a * np.linalg.norm(x) + (1 - a) * np.linalg.norm(y)
                vector = vector / np.linalg.norm(vector) * length
            more = added[r, other]
            if one != POSITIVE:
                more = a * added[r, one] + (1 - a) * added[r, other]
            logits.append(q[r] @ vector + more + np.log(weight))
        total.append(np.log(np.exp(logits).sum()))
    return np.array(total)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", [False, True])
def test_virtual_negatives_equal_explicit_interpolation(seed, unit):
    arrays = case(seed, unit)
    found = own_negatives(
        *arrays[:4], PAIRS, arrays[4], renormalize=unit, virtual_weight=0.7
    )
    expected = explicit(*(x.numpy().astype(float) for x in arrays), unit, 0.7)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_vectors_of_length_1_stay_so():
    """A query that points where a virtual negative does scores it 1, not less."""
    e = tf.constant([[[1.0, 0.0], [0.0, 1.0]]])
    middle = tf.constant([[0.5, 0.5]]) * 2**0.5
    half, no = tf.constant([[0.5]]), tf.zeros([1, 2])
    found = own_negatives(middle, middle, e, no, [(0, 1)], half, renormalize=True)
    expected = np.log(2 * np.exp(0.5**0.5) + np.e)
    assert float(found[0]) == pytest.approx(expected, rel=1e-6)


def test_what_is_left_out_takes_its_virtual_ones_along():
    q, p, e, added, mix = case(1)
    added = tf.concat([added[:, :2], tf.fill([5, 2], EXCLUDED)], axis=1)
    found = own_negatives(q, p, e, added, PAIRS, mix)
    kept = own_negatives(q, p, e[:, :2], added[:, :2], PAIRS[:1], mix[:, :1])
    np.testing.assert_allclose(found, kept, rtol=1e-6)
    nothing = own_negatives(q, p, e, tf.fill([5, 4], EXCLUDED), PAIRS, mix)
    assert (nothing.numpy() < -1e8).all()


@pytest.mark.parametrize("stop", [True, False])
def test_the_positive_is_moved_only_on_request(stop):
    q, p, e, added, mix = case(2)
    with tf.GradientTape() as tape:
        tape.watch([q, p, e])
        value = own_negatives(q, p, e, added, PAIRS, mix, True, stop)
    of_query, of_positive, of_negatives = tape.gradient(value, [q, p, e])
    assert (of_positive is None) == stop
    assert np.abs(of_query).sum() > 0 and np.abs(of_negatives).sum() > 0


@pytest.mark.parametrize("chunk", [None, 2])
def test_extra_mass_equals_further_columns(monkeypatch, chunk):
    """Every positive's own columns, as a softmax of that row alone would have them."""
    if chunk:
        # The package has a function of the module's name.
        module = sys.modules["tfcsmf.losses.chunked_softmax"]
        monkeypatch.setattr(module, "_CHUNK_SCORES", 1)
        monkeypatch.setattr(module, "_MIN_ROWS", chunk)
    rng = np.random.default_rng(0)
    q, c = (tf.constant(rng.normal(size=s), tf.float32) for s in ((4, 3), (5, 3)))
    pairs = np.array([[0, 1], [0, 3], [2, 0], [3, 4]], np.int32)
    own = tf.constant(rng.normal(size=(4, 6, 3)), tf.float32)
    weight = tf.constant([1.0, 2.0, 0.5, 1.0])

    def chunked(q, c, own):
        logits = tf.linalg.matvec(own, take_rows(q, pairs[:, 0]))
        return chunked_softmax(
            q,
            c,
            sample_weight=weight,
            positives=pairs,
            extra=tf.reduce_logsumexp(logits, axis=1),
        )

    def plain(q, c, own):
        total = 0.0
        for k, (row, column) in enumerate(pairs):
            others = [j for j in range(5) if [row, j] not in pairs.tolist()]
            logits = [tf.tensordot(q[row], c[j], 1) for j in (column, *others)]
            logits += [tf.tensordot(q[row], own[k, j], 1) for j in range(6)]
            total += weight[k] * (tf.reduce_logsumexp(logits) - logits[0])
        return total

    results = []
    for loss_of in (chunked, plain):
        with tf.GradientTape() as tape:
            tape.watch([q, c, own])
            loss = loss_of(q, c, own)
        results.append([loss, *tape.gradient(loss, [q, c, own])])
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_columns_without_draws_are_no_negatives():
    q, c = tf.ones([2, 2]), tf.constant([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    task = SampledSoftmax(correct_positives=False)
    positives = tf.constant([[0, 0], [1, 1]])
    loss = task(
        q,
        c,
        positives=positives,
        candidate_counts=tf.constant([0.0, 0.0, 4.0]),
        candidate_sampling_probability=tf.constant([0.1, 0.1, 0.5]),
        draws=tf.constant(4.0),
        compute_metrics=False,
        compute_batch_metrics=False,
    )
    # 4 draws of an item expected 4 * .5 times.
    expected = 2 * (np.log(np.e + 2.0 * np.exp(6.0)) - 1.0)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_gathered_rows_have_the_gradient_of_a_gather():
    values = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    rows = tf.constant([[0, 2], [2, 2]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(values)
        ours = tf.reduce_sum(take_rows(values, rows) ** 3)
        plain = tf.reduce_sum(tf.gather(values, rows) ** 3)
    np.testing.assert_allclose(
        tape.gradient(ours, values),
        tf.convert_to_tensor(tape.gradient(plain, values)),
        rtol=1e-6,
    )
