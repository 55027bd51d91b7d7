import numpy as np

from tfcsmf.evaluation.topk import top_k
from tfcsmf.retrieval.calibration import objective_scales
from tfcsmf.retrieval.exact_index import ExactIndex
from tfcsmf.retrieval.fusion import fuse


def test_fused_search_equals_the_explicit_weighted_sum_for_random_weights():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(40, 3, 8)).astype(np.float32)
    candidates = rng.normal(size=(300, 8)).astype(np.float32)
    weights = rng.normal(size=(40, 3)).astype(np.float32)  # negative ones too
    scales = np.float32([0.2, 1.0, 5.0])

    explicit = np.zeros((40, 300))
    for objective in range(3):
        scores = queries[:, objective] @ candidates.T / scales[objective]
        explicit += weights[:, [objective]] * scores

    index = ExactIndex(candidates, 20)
    scores, positions = index.search(fuse(queries, weights, scales), 20)
    expected = np.argsort(-explicit, axis=1)[:, :20]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(
        scores, np.take_along_axis(explicit, expected, 1), rtol=1e-4, atol=1e-4
    )


def test_shared_weights_are_the_same_weights_for_every_query():
    queries = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)
    weights, scales = np.float32([2, -1]), np.float32([1, 4])
    one = fuse(queries, weights, scales)
    np.testing.assert_array_equal(one, fuse(queries, np.tile(weights, (4, 1)), scales))
    np.testing.assert_allclose(one, 2 * queries[:, 0] - queries[:, 1] / 4, rtol=1e-6)


def objective_scales_of(shop, sets, candidates=None):
    return objective_scales(
        lambda part, stage: shop.encoder.queries(part, shop.log.train_histories, stage),
        shop.encoder.candidates(3) if candidates is None else candidates,
        sets,
        seed=0,
    )


def test_scales_are_the_spread_of_calibrated_scores_within_a_query(shop):
    sets = [shop.log.validation[name] for name in shop.log.objectives]
    scales = objective_scales_of(shop, sets)
    for stage, part in enumerate(sets):
        queries = shop.encoder.queries(part, shop.log.train_histories, stage)
        scores = queries @ shop.encoder.candidates(3).T
        expected = np.sqrt(scores.var(axis=1).mean())
        np.testing.assert_allclose(scales[stage], expected, rtol=1e-5)


def test_an_objective_without_queries_borrows_those_of_the_others(shop):
    view = shop.log.validation["view"]
    empty = type(view)(
        view.users[:0], view.targets, view.history_end[:0], view.seen, view.met
    )
    borrowed = objective_scales_of(shop, [view, empty, empty])
    assert borrowed[1] == objective_scales_of(shop, [view, view, view])[1]
    assert objective_scales_of(shop, [empty] * 3).tolist() == [1, 1, 1]


def test_a_scale_is_never_zero(shop):
    view = shop.log.validation["view"]
    scales = objective_scales_of(shop, [view] * 3, np.ones((7, 8), np.float32))
    assert scales.tolist() == [1, 1, 1]


def test_scores_of_a_request_agree_with_the_order_of_its_index():
    # Bit for bit, whatever the batch: one row of four equals the row alone.
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(4, 2, 8)).astype(np.float32)
    weights = rng.normal(size=(4, 2)).astype(np.float32)
    scales = np.float32([1, 3])
    whole = fuse(queries, weights, scales).numpy()
    for row in range(4):
        alone = fuse(queries[[row]], weights[[row]], scales).numpy()
        np.testing.assert_array_equal(alone[0], whole[row])
    candidates = rng.normal(size=(50, 8)).astype(np.float32)
    _, expected = top_k(whole, candidates, 5)
    np.testing.assert_array_equal(
        ExactIndex(candidates, 5).search(whole, 5)[1], expected
    )
