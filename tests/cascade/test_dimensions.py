"""Output dimensions: what they do for scores, and turning them."""

import numpy as np
import pytest

from tfcsmf.cascade.dimensions import (
    common_directions,
    principal_directions,
    rotate_free_dimensions,
    score_spread,
)
from tfcsmf.towers import FREE


def test_score_spread_is_what_the_loss_of_a_dimension_changes():
    rng = np.random.default_rng(0)
    queries = rng.normal(1.0, [0.1, 1.0, 3.0], [500, 3])
    candidates = rng.normal([4.0, 0.0, 1.0], [1.0, 2.0, 0.0], [300, 3])
    got = score_spread(queries, candidates)
    terms = queries[:, np.newaxis] * candidates  # [n, C, d]
    expected = np.sqrt(terms.var(axis=1).mean(axis=0))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
    # The last one adds the same to every candidate of a query.
    assert got[2] < 1e-9 < got[0]


@pytest.fixture
def vectors():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(2, 6, 6))
    return rng.normal(size=(80, 6)) @ mix[0], rng.normal(1, 1, (50, 6)) @ mix[1]


def test_common_directions_keep_lengths_and_are_sorted(vectors):
    queries, candidates = vectors
    turn = common_directions(queries, candidates)
    np.testing.assert_allclose(turn.T @ turn, np.eye(6), atol=1e-12)
    shares = [np.square(part @ turn).sum(axis=0) for part in vectors]
    both = sum(share / share.sum() for share in shares)
    assert np.all(np.diff(both) <= 1e-12)
    # Of one side alone they are its principal components.
    alone = np.linalg.eigvalsh(queries.T @ queries)[::-1]
    energy = np.square(queries @ common_directions(queries, queries)).sum(axis=0)
    np.testing.assert_allclose(energy, alone, rtol=1e-9)


def test_scores_stay_and_dimensions_are_singular_values(vectors):
    queries, candidates = vectors
    forth, back = principal_directions(queries, candidates)
    turned, other = queries @ forth, candidates @ back.T
    np.testing.assert_allclose(turned @ other.T, queries @ candidates.T, rtol=1e-9)
    centred = candidates - candidates.mean(axis=0)
    values = np.linalg.svd(queries @ centred.T, compute_uv=False)[:6]
    values /= np.sqrt(len(queries) * len(candidates))
    np.testing.assert_allclose(score_spread(turned, other), values, rtol=1e-3)
    np.testing.assert_allclose(turned.T @ turned / 80, np.diag(values), atol=1e-2)


def test_the_last_dimensions_are_the_cheapest_to_drop(vectors):
    queries, candidates = vectors
    forth, back = principal_directions(queries, candidates)
    centred = candidates - candidates.mean(axis=0)
    scores = queries @ centred.T
    left, values, right = np.linalg.svd(scores, full_matrices=False)
    for rank in (1, 3, 5):
        kept = (queries @ forth)[:, :rank] @ (centred @ back.T)[:, :rank].T
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(
            np.linalg.norm(scores - kept), np.linalg.norm(scores - best), rtol=1e-3
        )


@pytest.mark.parametrize("dead", ["queries", "candidates", "both"])
def test_dimensions_without_any_score_do_no_harm(vectors, dead):
    queries, candidates = (part.copy() for part in vectors)
    if dead != "candidates":
        queries[:, 2] = 0
    if dead != "queries":
        candidates[:, 4] = 7.0  # the same for all candidates ranks nothing
    forth, back = principal_directions(queries, candidates)
    turned, other = queries @ forth, candidates @ back.T
    np.testing.assert_allclose(
        turned @ other.T, queries @ candidates.T, rtol=1e-5, atol=1e-5
    )
    spread = score_spread(turned, other)
    assert np.isfinite(spread).all() and spread[-1] < 0.01 * spread[0]


def test_no_vectors_at_all_are_legal():
    forth, back = principal_directions(np.zeros((0, 3)), np.zeros((4, 3)))
    np.testing.assert_allclose(forth @ back, np.eye(3), atol=1e-9)


def test_a_model_keeps_its_scores_and_its_owned_dimensions(build, some_inputs):
    model = build("towers.normalize=false")
    model.block_owner.assign([0, FREE, 0, FREE, FREE, FREE, 1, FREE])
    free = model.block_owner.numpy() == FREE
    model.stage = 2
    query_inputs, candidate_inputs = some_inputs

    def vectors():
        query = model.query_vectors(query_inputs, 2, training=True).numpy()
        return query, model.candidate_vectors(
            candidate_inputs, 2, training=True
        ).numpy()

    kernels = [
        t.output_layer.kernel for t in (model.query_tower, model.candidate_tower)
    ]
    before, old = vectors(), [kernel.numpy() for kernel in kernels]
    rotate_free_dimensions(model, *before)
    after = vectors()
    np.testing.assert_allclose(
        after[0][:, free] @ after[1][:, free].T,
        before[0][:, free] @ before[1][:, free].T,
        atol=1e-5,
    )
    for kernel, value in zip(kernels, old, strict=True):
        np.testing.assert_array_equal(kernel.numpy()[:, ~free], value[:, ~free])
        assert not np.allclose(kernel.numpy()[:, free], value[:, free])
    spread = score_spread(*after)[free]
    assert (np.diff(spread) <= 1e-4 * spread[0]).all()
