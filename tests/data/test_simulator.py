"""The simulator keeps its promises: rates, order, determinism, a usable truth."""

import numpy as np
import polars as pl
import pytest

from tfcsmf.config import SimulatorConfig
from tfcsmf.data.simulator import START_TIME, simulate
from tfcsmf.errors import ConfigError, DataError

LEVELS = ("exposure", "click", "conversion")
CONFIG = SimulatorConfig(users=1500, items=800, exposures_per_user=60)


@pytest.fixture(scope="module")
def simulation():
    return simulate(CONFIG, LEVELS, seed=3)


def _pairs(simulation, objective):
    events = simulation.events.filter(event=objective)
    return (
        simulation.user_rows(events["user_id"]),
        simulation.item_rows(events["item_id"]),
    )


def test_rates_match_the_configuration(simulation):
    counts = dict(simulation.events["event"].value_counts().iter_rows())
    # Four standard deviations of a binomial with the solved mean.
    for parent, child, rate in (
        ("exposure", "click", CONFIG.click_rate),
        ("click", "conversion", CONFIG.conversion_rate),
    ):
        tolerance = 4 * np.sqrt(rate * (1 - rate) / counts[parent])
        assert abs(counts[child] / counts[parent] - rate) < tolerance


def test_exposures_are_overdispersed_and_at_least_three(simulation):
    exposures = simulation.exposures
    assert exposures.min() >= 3
    assert abs(exposures.mean() / CONFIG.exposures_per_user - 1) < 0.1
    assert exposures.var() > 5 * exposures.mean()  # Poisson would give 1
    users, _ = _pairs(simulation, "exposure")
    np.testing.assert_array_equal(np.bincount(users), exposures)


def test_an_item_is_shown_to_a_user_once(simulation):
    pairs = simulation.events.select("user_id", "item_id", "event")
    assert pairs.is_unique().all()


@pytest.mark.parametrize("child", [1, 2])
def test_every_event_follows_its_parent(simulation, child):
    key = ["user_id", "item_id"]
    events = simulation.events.filter(event=LEVELS[child])
    parents = simulation.events.filter(event=LEVELS[child - 1])
    joined = events.join(parents, on=key, how="left", suffix="_parent")
    assert len(joined) == len(events) > 0
    assert joined["timestamp_parent"].null_count() == 0
    delay = (joined["timestamp"] - joined["timestamp_parent"]).to_numpy()
    assert delay.min() >= 1
    assert delay.max() <= 86_400


def test_events_are_sorted_within_the_period(simulation):
    times = simulation.events["timestamp"]
    assert simulation.events.schema["timestamp"] == pl.Int64
    assert times.is_sorted()
    shown = simulation.events.filter(event="exposure")["timestamp"]
    assert shown.min() >= START_TIME
    assert shown.max() < START_TIME + CONFIG.days * 86_400


def test_popularity_skew_grows_with_the_exponent(simulation):
    def top_share(result):
        _, items = _pairs(result, "exposure")
        counts = np.sort(np.bincount(items, minlength=CONFIG.items))[::-1]
        return counts[: CONFIG.items // 20].sum() / counts.sum()

    flat = simulate(CONFIG.model_copy(update={"popularity": 0.0}), LEVELS, seed=3)
    assert top_share(simulation) > 1.5 * top_share(flat)
    assert top_share(simulation) > 3 * 0.05


def test_the_seed_decides(simulation):
    again = simulate(CONFIG, LEVELS, seed=3)
    assert again.events.equals(simulation.events)
    assert again.items.equals(simulation.items)
    assert again.users.equals(simulation.users)
    other = simulate(CONFIG, LEVELS, seed=4)
    assert not other.events.equals(simulation.events)
    assert not other.items.equals(simulation.items)


def test_a_longer_cascade_keeps_the_first_levels(simulation):
    shorter = simulate(CONFIG, LEVELS[:2], seed=3)
    longer = simulation.events.filter(pl.col("event") != "conversion")
    assert shorter.events.equals(longer)
    assert shorter.items.equals(simulation.items)


def _recall(scores, users, items, targets, k):
    """Recall of one target per user, the user's other items being masked."""
    masked = scores.copy()
    masked[users, items] = -np.inf
    rows = np.arange(len(scores))
    masked[rows, targets] = scores[rows, targets]
    better = (masked > masked[rows, targets][:, None]).sum(axis=1)
    return (better < k).mean()


@pytest.mark.parametrize("objective", LEVELS)
def test_truth_ranks_far_better_than_popularity(simulation, objective):
    users, items = _pairs(simulation, objective)
    # The last event of each user is held out.
    kept, last = np.unique(users[::-1], return_index=True)
    targets = items[::-1][last]
    row_of = np.full(CONFIG.users, -1)
    row_of[kept] = np.arange(len(kept))
    popularity = np.bincount(items, minlength=CONFIG.items).astype(float)
    truth = _recall(
        simulation.probability(objective, kept), row_of[users], items, targets, 20
    )
    popular = _recall(
        np.tile(popularity, (len(kept), 1)), row_of[users], items, targets, 20
    )
    assert truth > 1.5 * popular
    if objective == "conversion":
        earlier = _recall(
            simulation.probability("exposure", kept), row_of[users], items, targets, 20
        )
        # The levels follow related but different tastes.
        assert popular < earlier < 0.9 * truth


def test_probabilities_are_calibrated(simulation):
    users = np.arange(CONFIG.users)
    previous = np.ones((CONFIG.users, CONFIG.items))
    for objective in LEVELS:
        probability = simulation.probability(objective, users)
        assert (probability >= 0).all() and (probability <= previous).all()
        happened = np.zeros_like(probability)
        happened[_pairs(simulation, objective)] = 1
        # Decile by decile, the predicted count is the observed one.
        order = np.argsort(probability, axis=None)[::-1]
        for part in np.array_split(order[: order.size // 10], 10):
            expected = probability.ravel()[part].sum()
            observed = happened.ravel()[part].sum()
            spread = np.sqrt(expected) + 0.02 * expected
            assert abs(observed - expected) < 5 * spread
        previous = probability


def _explained(values, labels):
    """Share of the variance of `values` [n, m] explained by group means."""
    _, groups = np.unique(labels, return_inverse=True)
    counts = np.bincount(groups)[:, None]
    centred = values - values.mean(axis=0)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, groups, centred)
    return (sums**2 / counts).sum() / (centred**2).sum()


@pytest.mark.parametrize(
    ("column", "factor"), [("category", 5.0), ("brand", 2.0), ("first_tag", 2.0)]
)
def test_item_features_carry_signal(simulation, column, factor):
    # Items [n] by the log probability that each of 200 users clicks them.
    affinity = np.log(simulation.probability("click", np.arange(200))).T
    items = simulation.items.with_columns(first_tag=pl.col("tags").list.first())
    known = items[column].is_not_null().to_numpy()
    labels = items[column].drop_nulls().to_numpy().astype(str)
    shuffled = np.random.default_rng(0).permutation(labels)
    baseline = _explained(affinity[known], shuffled)
    assert _explained(affinity[known], labels) > factor * baseline


def test_images_and_users_carry_signal(simulation):
    affinity = np.log(simulation.probability("click", np.arange(200))).T
    affinity = affinity - affinity.mean(axis=1, keepdims=True)
    known = simulation.items["image"].is_not_null().to_numpy()
    image = simulation.items["image"].drop_nulls().to_numpy()
    target = affinity[known] - affinity[known].mean(axis=0)
    design = np.column_stack([image, np.ones(len(image))])
    fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert (fitted**2).sum() / (target**2).sum() > 0.3

    users = simulation.users.with_row_index().drop_nulls()
    taste = np.log(simulation.probability("click", users["index"].to_numpy()))
    taste = taste - taste.mean(axis=1, keepdims=True)
    for column in ("age_group", "country"):
        labels = users[column].to_numpy().astype(str)
        shuffled = np.random.default_rng(0).permutation(labels)
        assert _explained(taste, labels) > 2 * _explained(taste, shuffled)


def test_tables_have_the_declared_types_and_gaps(simulation):
    assert simulation.items.schema == {
        "item_id": pl.String,
        "category": pl.String,
        "brand": pl.String,
        "price": pl.Float64,
        "tags": pl.List(pl.String),
        "image": pl.Array(pl.Float32, 8),
    }
    assert simulation.users.schema == {
        "user_id": pl.String,
        "age_group": pl.String,
        "country": pl.String,
        "income": pl.Float64,
    }
    for column in ("brand", "price", "tags", "image"):
        share = simulation.items[column].null_count() / CONFIG.items
        assert 0.005 < share < 0.05
    assert simulation.items["category"].null_count() == 0
    lengths = simulation.items["tags"].drop_nulls().list.len()
    assert (lengths.min(), lengths.max()) == (1, 4)
    assert simulation.items["price"].drop_nulls().min() > 0


def test_ids_are_rows(simulation):
    assert simulation.items["item_id"][[0, 17]].to_list() == ["i0", "i17"]
    np.testing.assert_array_equal(simulation.item_rows(["i17", "i0"]), [17, 0])
    np.testing.assert_array_equal(
        simulation.user_rows(simulation.users["user_id"]), np.arange(CONFIG.users)
    )


@pytest.mark.parametrize("bad", ["u1500", "i3", "u03", "u-1", "", "u"])
def test_unknown_ids_are_refused(simulation, bad):
    with pytest.raises(DataError, match="u0 to u1499"):
        simulation.user_rows(["u1", bad])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_levels(count):
    names = tuple(f"level{index}" for index in range(count))
    config = SimulatorConfig(users=300, items=100, exposures_per_user=40)
    result = simulate(config, names, seed=0)
    assert set(result.events["event"].unique()) <= set(names)
    counts = dict(result.events["event"].value_counts().iter_rows())
    sizes = [counts.get(name, 0) for name in names]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == result.exposures.sum()
    assert result.probability(names[-1], np.array([7, 7])).shape == (2, 100)


@pytest.mark.parametrize(
    ("users", "items", "exposures", "factors"),
    [(1, 2, 1, 1), (1, 1, 50, 12), (3, 2, 1000, 3), (40, 1, 5, 2)],
)
def test_tiny_worlds(users, items, exposures, factors):
    config = SimulatorConfig(
        users=users, items=items, exposures_per_user=exposures, factors=factors
    )
    result = simulate(config, LEVELS, seed=1)
    np.testing.assert_array_equal(result.exposures, np.full(users, min(items, 3)))
    shown = result.events.filter(event="exposure")
    assert len(shown) == users * items
    probability = result.probability("conversion", np.arange(users))
    assert np.isfinite(probability).all()
    # Everything is shown to everybody.
    exposure = result.probability("exposure", np.arange(users))
    np.testing.assert_allclose(exposure, np.ones((users, items)), atol=1e-6)


@pytest.mark.parametrize("names", [(), ("view", "view")])
def test_objectives_are_distinct_names(names):
    with pytest.raises(ConfigError, match="distinct names"):
        simulate(SimulatorConfig(users=2, items=2), names, seed=0)


def test_unknown_objective_names_the_nearest(simulation):
    with pytest.raises(ConfigError, match="Did you mean 'click'"):
        simulation.probability("clik", np.array([0]))
